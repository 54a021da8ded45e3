"""Units, changes and validity of architectures: pure functions from spec and base config to spec."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts_schema.architecture import (
    ArchitectureSpec,
    StageBlocks,
    UnitKind,
    is_copy,
    original_of,
    stage_of,
)
from steps.files.errors import ArchitectureError
from steps.unet.blocks import STEM, Block, config_hash, full_spec, list_blocks, normalise

SNAPFUSION_SD15_REMOVED: tuple[str, ...] = (
    # P Table 3. Which of the seven 8x8 ResNets went is our choice: the one that leaves every skip consistent.
    "down.0.attentions.0",
    "down.0.attentions.1",
    "up.3.attentions.0",
    "up.3.attentions.1",
    "up.3.attentions.2",
    "down.2.resnets.1+up.1.resnets.0",
    "down.3.resnets.1+up.0.resnets.0",
    "mid.resnets.1",
)
SNAPFUSION_SD15_COPIED: tuple[str, ...] = ("up.1.attentions.0", "up.1.attentions.1", "up.1.attentions.2")

NAMED_SPECS: tuple[str, ...] = ("base", "snapfusion-sd15")


@dataclass(frozen=True)
class Unit:
    """What is skipped in training, scored and removed, always together.

    `attention`: an attention block. `mid_resnet`: a ResNet of the middle. `pair`: a down ResNet of equal
    channels with the up ResNet that takes its skip. `lone_up`: an up ResNet alone, its skip is dropped.
    `lone_down`: a down ResNet of equal channels whose skip nobody takes any more. A copy is a unit of its
    own.
    """

    id: str
    kind: UnitKind
    blocks: tuple[str, ...]


def list_units(spec: ArchitectureSpec, config: Mapping[str, Any]) -> list[Unit]:
    """Every unit that can still be removed from `spec`, in order of execution of its first block."""
    blocks = {block.id: block for block in list_blocks(config)}
    present = set(spec.blocks)
    units: list[Unit] = []
    for block_id in spec.blocks:
        units += _units_at(block_id, blocks[original_of(block_id)], present, blocks)
    return units


def _units_at(block_id: str, block: Block, present: set[str], blocks: Mapping[str, Block]) -> list[Unit]:
    """The units whose first block is this one; none for a block that changes the channels."""
    if block.kind == "attention":
        return [Unit(block_id, "attention", (block_id,))]
    if block.stage == "mid":
        return [Unit(block_id, "mid_resnet", (block_id,))]
    if not block.keeps_channels:
        return []
    if block.skip_source is not None:
        return [Unit(block_id, "lone_up", (block_id,))]
    if is_copy(block_id) or block.consumer not in present:
        return [Unit(block_id, "lone_down", (block_id,))]
    if block.consumer is not None and blocks[block.consumer].keeps_channels:
        return [Unit(f"{block_id}+{block.consumer}", "pair", (block_id, block.consumer))]
    return []


def copyable_blocks(spec: ArchitectureSpec, config: Mapping[str, Any]) -> list[str]:
    """Ids of base blocks in `spec` that may be copied: attentions, mid and equal-channel down ResNets."""
    blocks = {block.id: block for block in list_blocks(config)}
    candidates = [blocks[block_id] for block_id in spec.blocks if not is_copy(block_id)]
    return [
        block.id
        for block in candidates
        if block.kind == "attention" or (block.keeps_channels and block.skip_source is None)
    ]


def units_by_id(spec: ArchitectureSpec, config: Mapping[str, Any], unit_ids: Iterable[str]) -> list[Unit]:
    """Units by id. Raises ArchitectureError for one that `spec` does not have."""
    units = {unit.id: unit for unit in list_units(spec, config)}
    wanted = list(unit_ids)
    unknown = [unit_id for unit_id in wanted if unit_id not in units]
    if unknown:
        raise ArchitectureError(
            f"no removable unit {', '.join(unknown)} in architecture {spec.name}; "
            f"there are: {', '.join(units)}"
        )
    return [units[unit_id] for unit_id in wanted]


def remove_unit(
    spec: ArchitectureSpec, config: Mapping[str, Any], unit_id: str, *, name: str | None = None
) -> ArchitectureSpec:
    """`spec` without one unit. Raises ArchitectureError for a unit that is not there."""
    (unit,) = units_by_id(spec, config, [unit_id])
    return _without(spec, unit.blocks, name or spec.name)


def copy_block(
    spec: ArchitectureSpec, config: Mapping[str, Any], block_id: str, *, name: str | None = None
) -> ArchitectureSpec:
    """`spec` with one more copy of a block, right after the original and its older copies; it makes no new
    skip.

    Raises ArchitectureError for a block that is not there or cannot be copied.
    """
    allowed = copyable_blocks(spec, config)
    if block_id not in allowed:
        raise ArchitectureError(f"block {block_id} cannot be copied; blocks that can: {', '.join(allowed)}")
    stages = []
    for stage in spec.stages:
        if stage.stage == stage_of(block_id):
            family = [block for block in stage.blocks if original_of(block) == block_id]
            place = stage.blocks.index(family[-1]) + 1
            number = 1 + max(
                (int(block.rsplit(".copy", 1)[1]) for block in family if is_copy(block)), default=0
            )
            blocks = (*stage.blocks[:place], f"{block_id}.copy{number}", *stage.blocks[place:])
            stages.append(StageBlocks(stage=stage.stage, blocks=blocks, removed=stage.removed))
        else:
            stages.append(stage)
    return _with_stages(spec, stages, name or spec.name)


def named_spec(name: str, config: Mapping[str, Any]) -> ArchitectureSpec:
    """A named architecture on a base's config: `base`, or `snapfusion-sd15`, the paper's final UNet (P Table
    3).

    Raises ArchitectureError for an unknown name and for a base that lacks the blocks concerned.
    """
    if name not in NAMED_SPECS:
        raise ArchitectureError(f"no architecture is called '{name}'; known are {', '.join(NAMED_SPECS)}")
    spec = full_spec(config, name=name)
    if name == "snapfusion-sd15":
        for unit_id in SNAPFUSION_SD15_REMOVED:
            spec = remove_unit(spec, config, unit_id)
        for block_id in SNAPFUSION_SD15_COPIED:
            spec = copy_block(spec, config, block_id)
    return spec


def validate(spec: ArchitectureSpec, config: Mapping[str, Any]) -> None:
    """Raise ArchitectureError unless `spec` is an architecture of this base that fits together.

    Checks that it belongs to the base's config, that blocks are the base's and in their order, and that
    channels and skips fit from part to part; a break is named by the pair of blocks that does not fit.
    """
    if spec.base_config != config_hash(config):
        raise ArchitectureError(
            f"architecture {spec.name} belongs to the base config {spec.base_config[:12]}, "
            f"found {config_hash(config)[:12]}; build it for this base"
        )
    blocks = {block.id: block for block in list_blocks(config)}
    _check_order(spec, config, blocks)
    _check_flow(spec, config, blocks)


def to_payload(spec: ArchitectureSpec) -> dict[str, Any]:
    """What goes into config.json: the record without what varies between runs."""
    return {
        "schema": spec.schema_name,
        "version": spec.schema_version,
        **spec.model_dump(mode="json", include={"name", "base_config", "stages"}),
    }


def from_payload(payload: Mapping[str, Any]) -> ArchitectureSpec:
    """The spec of a config.json. Raises ArchitectureError for another schema or version."""
    found = (payload.get("schema"), payload.get("version"))
    expected = (ArchitectureSpec.schema_name, ArchitectureSpec.schema_version)
    if found != expected:
        raise ArchitectureError(
            f"expected architecture schema {expected}, found {found}; use the matching version"
        )
    return ArchitectureSpec.model_validate(
        {k: v for k, v in payload.items() if k not in ("schema", "version")}
    )


def _check_order(spec: ArchitectureSpec, config: Mapping[str, Any], blocks: Mapping[str, Block]) -> None:
    """Every base block is present or removed, in the base's order, copies after their originals."""
    full = full_spec(config)
    expected = [stage.stage for stage in full.stages]
    found = [stage.stage for stage in spec.stages]
    if found != expected:
        raise ArchitectureError(f"expected the stages {expected}, found {found}")
    for base, stage in zip(full.stages, spec.stages, strict=True):
        unknown = [
            block for block in (*stage.blocks, *stage.removed) if original_of(block) not in base.blocks
        ]
        missing = [block for block in base.blocks if block not in stage.blocks and block not in stage.removed]
        if unknown or missing:
            raise ArchitectureError(
                f"stage {stage.stage}: unknown blocks {unknown}, unmentioned blocks {missing}; "
                "every block of the base is either present or removed"
            )
        places = [base.blocks.index(original_of(block)) for block in stage.blocks]
        for before, after, left, right in zip(
            stage.blocks, stage.blocks[1:], places, places[1:], strict=False
        ):
            wrong_copy = left == right and not is_copy(after)
            if left > right or wrong_copy:
                raise ArchitectureError(f"stage {stage.stage}: {before} must not come before {after}")
    for block_id in spec.copied:
        block = blocks[original_of(block_id)]
        if block.skip_source is not None or not block.keeps_channels:
            raise ArchitectureError(
                f"{block_id} copies {block.id}, which takes a skip or changes the channels "
                f"({block.in_channels} in, {block.out_channels} out); its output does not fit its own input"
            )


def _check_flow(spec: ArchitectureSpec, config: Mapping[str, Any], blocks: Mapping[str, Block]) -> None:
    """Follow the hidden channels and the skips through the network."""
    present = set(spec.blocks)
    hidden, before = normalise(config)["block_out_channels"][0], STEM
    for block_id in spec.blocks:
        block = blocks[original_of(block_id)]
        source = block.skip_source
        if source in blocks and source not in present:
            raise ArchitectureError(
                f"{block_id} takes the skip of {source}, which is removed; "
                f"remove the pair ({source}, {block_id}) or keep both"
            )
        if block.hidden_channels != hidden:
            raise ArchitectureError(
                f"{block_id} expects {block.hidden_channels} channels, but {before} hands over {hidden}; "
                f"the pair ({before}, {block_id}) does not fit, keep the block between them"
            )
        hidden, before = block.out_channels, block_id
    _check_ends(spec, config, blocks)


def _check_ends(spec: ArchitectureSpec, config: Mapping[str, Any], blocks: Mapping[str, Block]) -> None:
    """Resamplers and the last convolution have the base's widths: a stage must end as wide as in the base."""
    hidden, before = normalise(config)["block_out_channels"][0], STEM
    for base, stage in zip(full_spec(config).stages, spec.stages, strict=True):
        if stage.blocks:
            before = stage.blocks[-1]
            hidden = blocks[original_of(before)].out_channels
        expected = blocks[base.blocks[-1]].out_channels
        if hidden != expected:
            raise ArchitectureError(
                f"stage {stage.stage} must end with {expected} channels, found {hidden} after {before}; "
                f"the pair ({before}, end of {stage.stage}) does not fit"
            )


def _without(spec: ArchitectureSpec, gone: Iterable[str], name: str) -> ArchitectureSpec:
    gone = set(gone)
    stages = []
    for stage in spec.stages:
        blocks = tuple(block for block in stage.blocks if block not in gone)
        removed = [*stage.removed, *(block for block in stage.blocks if block in gone and not is_copy(block))]
        # In the base's order, so that the order of the removals leaves no trace in the record.
        removed.sort(key=_place)
        stages.append(StageBlocks(stage=stage.stage, blocks=blocks, removed=tuple(removed)))
    return _with_stages(spec, stages, name)


def _place(block_id: str) -> tuple[int, bool]:
    """Sort key of a base block within its stage: by layer, the ResNet before the attention."""
    kind, layer = block_id.split(".")[-2:]
    return int(layer), kind == "attentions"


def _with_stages(spec: ArchitectureSpec, stages: list[StageBlocks], name: str) -> ArchitectureSpec:
    return ArchitectureSpec(name=name, base_config=spec.base_config, stages=tuple(stages))
