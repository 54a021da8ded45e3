"""Records of the architecture search: which blocks a UNet is made of, and how it came to be.

A block id is its place in the base UNet, `down.0.attentions.1`, `mid.resnets.0`, `up.2.resnets.2`. A copy
carries its original's id and a number: `up.1.attentions.0.copy1`.
"""

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen, Measurement, Record
from artifacts_schema.references import WeightsRef
from artifacts_schema.training import Selection

_BLOCK_ID = re.compile(r"^(?:(?:down|up)\.\d+|mid)\.(?:attentions|resnets)\.\d+(?:\.copy[1-9]\d*)?$")

UnitKind = Literal["attention", "mid_resnet", "pair", "lone_up", "lone_down"]


def stage_of(block_id: str) -> str:
    """Stage a block lies in: `down.0` of `down.0.attentions.1`, `mid` of `mid.resnets.0`."""
    parts = block_id.split(".")
    return parts[0] if parts[0] == "mid" else ".".join(parts[:2])


def original_of(block_id: str) -> str:
    """Id of the base block that a block is a copy of; the id itself for one that is no copy."""
    return re.sub(r"\.copy\d+$", "", block_id)


def is_copy(block_id: str) -> bool:
    """True for the id of a copy."""
    return original_of(block_id) != block_id


class StageBlocks(Frozen):
    """One stage of a UNet: what runs, in order, and what was taken out of the base's stage."""

    stage: str  # "down.0", "mid", "up.3"
    blocks: tuple[str, ...]  # ids in order of execution, copies included
    removed: tuple[str, ...] = ()  # ids of base blocks that are gone

    @property
    def kept(self) -> tuple[str, ...]:
        """Ids of the base's blocks that are still there."""
        return tuple(block for block in self.blocks if not is_copy(block))

    @property
    def copied(self) -> tuple[str, ...]:
        """Ids of the copies."""
        return tuple(block for block in self.blocks if is_copy(block))

    @model_validator(mode="after")
    def _check(self) -> Self:
        everything = self.blocks + self.removed
        for block in everything:
            if not _BLOCK_ID.match(block):
                raise ValueError(
                    f"'{block}' is no block id; expected e.g. 'down.0.attentions.1' or 'mid.resnets.0'"
                )
            if stage_of(block) != self.stage:
                raise ValueError(f"block {block} does not belong to stage {self.stage}")
        if len(set(everything)) != len(everything):
            twice = sorted({block for block in everything if everything.count(block) > 1})
            raise ValueError(f"stage {self.stage} names {', '.join(twice)} more than once")
        copies_removed = [block for block in self.removed if is_copy(block)]
        if copies_removed:
            raise ValueError(
                f"a copy that is gone is left out, not listed as removed: {', '.join(copies_removed)}"
            )
        return self


class ArchitectureSpec(Record):
    """The blocks of a UNet, stage by stage in order of execution; with the base's config it defines the
    network.

    Trainer, evaluator, exporter and runtime read this one record. It says nothing about weights. Whether the
    skip connections fit needs the base's config and is checked by `steps.unet.architecture.validate`.
    """

    schema_name: ClassVar[str] = "snapfusion.architecture"
    schema_version: ClassVar[int] = 1

    stage: str = "architecture_evolution"
    name: str = "base"
    base_config: str  # hash of the base UNet's geometry, steps.unet.blocks.config_hash
    stages: tuple[StageBlocks, ...]

    @property
    def blocks(self) -> tuple[str, ...]:
        """All ids in order of execution."""
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def removed(self) -> tuple[str, ...]:
        """Ids of the base's blocks that are gone."""
        return tuple(block for stage in self.stages for block in stage.removed)

    @property
    def copied(self) -> tuple[str, ...]:
        """Ids of the copies."""
        return tuple(block for stage in self.stages for block in stage.copied)

    @property
    def is_full(self) -> bool:
        """True when this is the base's own architecture."""
        return not self.removed and not self.copied

    def layout(self) -> str:
        """Text that says what is there, whatever the record is called or where it came from."""
        return "|".join(f"{stage.stage}:{','.join(stage.blocks)}" for stage in self.stages)

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        names = [stage.stage for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"every stage is listed once, found {names}")
        return self


class GivenArchitecture(Frozen):
    """What an architecture means, without who made it when: the part of a configuration that a file gave."""

    name: str
    base_config: str  # hash of the base UNet's geometry, as in ArchitectureSpec
    stages: tuple[StageBlocks, ...]

    def spec(self) -> ArchitectureSpec:
        """The record, by nobody yet."""
        return ArchitectureSpec(name=self.name, base_config=self.base_config, stages=self.stages)


class UnitScore(Frozen):
    """What one change loses: paired probes without and with it, each caption of another picture group.

    `difference` is the mean over the round's `n` captions of (CLIP score before - after), a cosine difference, with its standard
    error; `pooled` adds the evidence of earlier rounds. `latency` is what the change saves, in the table's unit: a copy
    less than nothing.
    """

    action: Literal["remove", "copy"]
    unit: str  # unit id for "remove", block id for "copy"
    difference: float
    standard_error: float
    n: int
    pooled: float
    pooled_error: float
    latency: float


class EvolutionAction(Frozen):
    """One change of the architecture and the predicted latency after it (in the table's unit).

    `value` is the upper bound of what it loses over the latency that it saves; of a copy, the lower bound of what it gains
    over the latency that it costs.
    """

    kind: Literal["remove", "copy"]
    target: str  # unit id for "remove", block id for "copy"
    value: float
    predicted_after: float


class EvolutionRound(Frozen):
    """One round: probe, act, go on training. `curve` depends on the logging interval, which changes no result."""

    volatile: ClassVar[frozenset[str]] = frozenset({"curve"})

    index: int
    layout_before: tuple[StageBlocks, ...]
    baseline_score: float  # mean CLIP score of the probe pictures before the round
    drift: float  # standard deviation by which the losses moved since the last round
    scores: tuple[UnitScore, ...]
    actions: tuple[EvolutionAction, ...]
    predicted_before: float
    predicted_after: float
    trained_iterations: int = 0
    curve: tuple[dict[str, float], ...] = ()


def _searched(fields: dict[str, Any]) -> dict[str, Any]:
    """In version 1 every architecture was searched."""
    return fields


class EvolutionRecord(Record):
    """Left by `architecture_evolution`: the final architecture, its weights, and every round on the way.

    An architecture that was given and not searched has no rounds and no budget, but `iterations`, `curve` and `selection`
    of its one training.
    """

    schema_name: ClassVar[str] = "snapfusion.evolution"
    schema_version: ClassVar[int] = 2
    upgrades = {1: _searched}
    volatile: ClassVar[frozenset[str]] = frozenset({"provenance", "images_per_s", "curve"})

    architecture: ArchitectureSpec
    weights: WeightsRef
    rounds: tuple[EvolutionRound, ...]
    latency_table: str  # identity of the table
    latency_unit: str
    latency_budget: float | None = Field(gt=0.0)  # of the base UNet's table latency
    base_latency: float
    predicted_latency: float
    base_parameters: int
    parameters: int
    iterations: int = 0
    curve: tuple[dict[str, float], ...] = ()
    selection: Selection | None = None
    images_per_s: Measurement | None = None

    @property
    def predicted_ratio(self) -> float:
        """Predicted latency as a fraction of the base's."""
        return self.predicted_latency / self.base_latency
