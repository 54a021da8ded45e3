"""Units, changes, the validator and the named architecture."""

import pytest

from artifacts_schema.architecture import ArchitectureSpec, StageBlocks
from steps.files.errors import ArchitectureError
from steps.unet.architecture import (
    copy_block,
    copyable_blocks,
    list_units,
    named_spec,
    remove_unit,
    validate,
)
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec
from tests.factories import TINY_CONFIG

FULL = full_spec(SD15_UNET_CONFIG)


def _drop(spec: ArchitectureSpec, *blocks: str) -> ArchitectureSpec:
    """Remove blocks without asking whether they may go."""
    stages = tuple(
        StageBlocks(
            stage=stage.stage,
            blocks=tuple(block for block in stage.blocks if block not in blocks),
            removed=(*stage.removed, *(block for block in stage.blocks if block in blocks)),
        )
        for stage in spec.stages
    )
    return ArchitectureSpec(name="broken", base_config=spec.base_config, stages=stages)


def test_units_of_sd15() -> None:
    units = list_units(FULL, SD15_UNET_CONFIG)
    by_kind = {kind: [u.id for u in units if u.kind == kind] for kind in {u.kind for u in units}}
    assert len(by_kind["attention"]) == 16
    assert by_kind["mid_resnet"] == ["mid.resnets.0", "mid.resnets.1"]
    assert by_kind["pair"] == [
        "down.0.resnets.0+up.3.resnets.1",
        "down.2.resnets.1+up.1.resnets.0",
        "down.3.resnets.0+up.0.resnets.1",
        "down.3.resnets.1+up.0.resnets.0",
    ]
    # Every up ResNet whose hidden channels equal its output's; up.2.resnets.0 and up.3.resnets.0 change them.
    assert by_kind["lone_up"] == [
        *(f"up.0.resnets.{i}" for i in range(3)),
        *(f"up.1.resnets.{i}" for i in range(3)),
        "up.2.resnets.1",
        "up.2.resnets.2",
        "up.3.resnets.1",
        "up.3.resnets.2",
    ]
    assert set(by_kind) == {"attention", "mid_resnet", "pair", "lone_up"}


def test_every_unit_leaves_a_valid_architecture_and_is_gone() -> None:
    for unit in list_units(FULL, SD15_UNET_CONFIG):
        spec = remove_unit(FULL, SD15_UNET_CONFIG, unit.id)
        validate(spec, SD15_UNET_CONFIG)
        assert set(spec.removed) == set(unit.blocks)
        assert unit.id not in [u.id for u in list_units(spec, SD15_UNET_CONFIG)]


def test_removing_everything_removable_stays_valid() -> None:
    spec = FULL
    while units := list_units(spec, SD15_UNET_CONFIG):
        spec = remove_unit(spec, SD15_UNET_CONFIG, units[-1].id)
    validate(spec, SD15_UNET_CONFIG)
    assert not [block for block in spec.blocks if "attentions" in block]


def test_a_down_resnet_whose_skip_is_dropped_becomes_a_unit() -> None:
    spec = remove_unit(FULL, SD15_UNET_CONFIG, "up.1.resnets.0")
    units = {unit.id: unit.kind for unit in list_units(spec, SD15_UNET_CONFIG)}
    assert units["down.2.resnets.1"] == "lone_down"
    validate(remove_unit(spec, SD15_UNET_CONFIG, "down.2.resnets.1"), SD15_UNET_CONFIG)


def test_order_of_removals_leaves_no_trace() -> None:
    first, second = "down.0.attentions.1", "down.0.attentions.0"
    one = remove_unit(remove_unit(FULL, SD15_UNET_CONFIG, first), SD15_UNET_CONFIG, second)
    other = remove_unit(remove_unit(FULL, SD15_UNET_CONFIG, second), SD15_UNET_CONFIG, first)
    assert one == other
    middle = remove_unit(FULL, SD15_UNET_CONFIG, "mid.attentions.0")
    assert remove_unit(middle, SD15_UNET_CONFIG, "mid.resnets.0").removed == (
        "mid.resnets.0",
        "mid.attentions.0",
    )


def test_copies_follow_their_original_and_are_units() -> None:
    spec = copy_block(FULL, SD15_UNET_CONFIG, "up.1.attentions.0")
    spec = copy_block(spec, SD15_UNET_CONFIG, "up.1.attentions.0")
    up1 = next(stage for stage in spec.stages if stage.stage == "up.1")
    assert up1.blocks[1:4] == ("up.1.attentions.0", "up.1.attentions.0.copy1", "up.1.attentions.0.copy2")
    assert up1.copied == up1.blocks[2:4]
    validate(spec, SD15_UNET_CONFIG)
    spec = remove_unit(spec, SD15_UNET_CONFIG, "up.1.attentions.0.copy1")
    assert spec.copied == ("up.1.attentions.0.copy2",)
    assert spec.removed == ()


def test_what_can_be_copied() -> None:
    allowed = copyable_blocks(FULL, SD15_UNET_CONFIG)
    assert len(allowed) == 16 + 2 + 6
    assert "down.2.resnets.1" in allowed
    assert "down.2.resnets.1" in allowed
    assert "down.1.resnets.0" not in allowed
    with pytest.raises(ArchitectureError, match=r"up\.1\.resnets\.0 cannot be copied"):
        copy_block(FULL, SD15_UNET_CONFIG, "up.1.resnets.0")


def test_named_spec_is_table_3_of_the_paper() -> None:
    spec = named_spec("snapfusion-sd15", SD15_UNET_CONFIG)
    validate(spec, SD15_UNET_CONFIG)
    stages = {s.stage: s.blocks for s in spec.stages}
    groups = {
        "Down-1": ("down.0",),
        "Down-2": ("down.1",),
        "Down-3": ("down.2",),
        "Mid": ("down.3", "mid", "up.0"),
        "Up-1": ("up.1",),
        "Up-2": ("up.2",),
        "Up-3": ("up.3",),
    }
    counts = {
        name: tuple(
            sum(kind in block for stage in members for block in stages[stage])
            for kind in ("attentions", "resnets")
        )
        for name, members in groups.items()
    }
    assert counts == {
        "Down-1": (0, 2),
        "Down-2": (2, 2),
        "Down-3": (2, 1),
        "Mid": (1, 4),
        "Up-1": (6, 2),
        "Up-2": (3, 3),
        "Up-3": (0, 3),
    }


def test_unknown_name_and_unknown_unit_name_the_alternatives() -> None:
    with pytest.raises(ArchitectureError, match="snapfusion-sd15"):
        named_spec("snapfusion", SD15_UNET_CONFIG)
    with pytest.raises(ArchitectureError, match=r"no removable unit down\.1\.resnets\.0.*mid\.resnets\.0"):
        remove_unit(FULL, SD15_UNET_CONFIG, "down.1.resnets.0")


@pytest.mark.parametrize(
    ("gone", "pair"),
    [
        (("down.2.resnets.1",), ("down.2.resnets.1", "up.1.resnets.0")),
        (("down.1.resnets.0", "up.2.resnets.1"), ("down.0.attentions.1", "down.1.attentions.0")),
        (("up.2.resnets.0",), ("up.1.attentions.2", "up.2.attentions.0")),
    ],
    ids=["skip without its maker", "channels down", "channels up"],
)
def test_broken_skips_are_refused_by_the_pair(gone: tuple[str, ...], pair: tuple[str, str]) -> None:
    with pytest.raises(ArchitectureError) as error:
        validate(_drop(FULL, *gone), SD15_UNET_CONFIG)
    assert pair[0] in str(error.value)
    assert pair[1] in str(error.value)


def test_a_stage_that_ends_too_narrow_is_refused() -> None:
    everything = tuple(block for block in FULL.blocks if block.startswith("down.1."))
    takers = ("up.2.resnets.0", "up.2.resnets.1")
    with pytest.raises(ArchitectureError, match=r"down\.0\.attentions\.1"):
        validate(_drop(FULL, *everything, *takers), SD15_UNET_CONFIG)


def test_spec_of_another_base_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="belongs to the base config"):
        validate(FULL, TINY_CONFIG)


def test_unmentioned_and_misplaced_blocks_are_refused() -> None:
    first, *others = FULL.stages
    shorter = StageBlocks(stage=first.stage, blocks=first.blocks[:-1])
    swapped = StageBlocks(stage=first.stage, blocks=tuple(reversed(first.blocks)))
    for stage, text in ((shorter, "unmentioned"), (swapped, "must not come before")):
        spec = ArchitectureSpec(base_config=FULL.base_config, stages=(stage, *others))
        with pytest.raises(ArchitectureError, match=text):
            validate(spec, SD15_UNET_CONFIG)


def test_a_copy_of_an_up_resnet_is_refused() -> None:
    stages = []
    for stage in FULL.stages:
        blocks = stage.blocks
        if stage.stage == "up.1":
            blocks = (blocks[0], "up.1.resnets.0.copy1", *blocks[1:])
        stages.append(StageBlocks(stage=stage.stage, blocks=blocks))
    spec = ArchitectureSpec(base_config=FULL.base_config, stages=tuple(stages))
    with pytest.raises(ArchitectureError, match=r"up\.1\.resnets\.0\.copy1 copies up\.1\.resnets\.0"):
        validate(spec, SD15_UNET_CONFIG)
