"""The architecture record by itself, without any base."""

import pytest
from pydantic import ValidationError

from artifacts_schema.architecture import ArchitectureSpec, StageBlocks, is_copy, original_of, stage_of


def _spec(**changes: object) -> ArchitectureSpec:
    stages = (
        StageBlocks(stage="down.0", blocks=("down.0.resnets.0",), removed=("down.0.attentions.0",)),
        StageBlocks(stage="mid", blocks=("mid.resnets.0", "mid.attentions.0", "mid.attentions.0.copy1")),
    )
    return ArchitectureSpec(**{"base_config": "00", "stages": stages, **changes})


def test_ids_say_where_a_block_is() -> None:
    assert stage_of("down.0.attentions.1") == "down.0"
    assert stage_of("mid.resnets.0") == "mid"
    assert original_of("up.1.attentions.0.copy2") == "up.1.attentions.0"
    assert is_copy("up.1.attentions.0.copy2")
    assert not is_copy("up.1.attentions.0")


def test_kept_removed_and_copied() -> None:
    spec = _spec()
    assert spec.removed == ("down.0.attentions.0",)
    assert spec.copied == ("mid.attentions.0.copy1",)
    assert spec.stages[1].kept == ("mid.resnets.0", "mid.attentions.0")
    assert not spec.is_full


def test_round_trip_keeps_the_identity() -> None:
    spec = _spec(name="x")
    again = ArchitectureSpec.from_json(spec.to_json())
    assert again == spec
    assert again.identity() == spec.identity()
    assert _spec(name="y").identity() != spec.identity()
    assert _spec(name="y").layout() == spec.layout()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "mid", "blocks": ("mid.resnet.0",)}, "no block id"),
        ({"stage": "mid", "blocks": ("down.0.resnets.0",)}, "does not belong"),
        ({"stage": "mid", "blocks": ("mid.resnets.0", "mid.resnets.0")}, "more than once"),
        ({"stage": "mid", "blocks": ("mid.resnets.0",), "removed": ("mid.resnets.0",)}, "more than once"),
        ({"stage": "mid", "blocks": (), "removed": ("mid.resnets.0.copy1",)}, "left out"),
    ],
    ids=["unknown kind", "other stage", "twice", "present and removed", "removed copy"],
)
def test_impossible_stages_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageBlocks(**fields)


def test_a_stage_is_listed_once() -> None:
    stage = StageBlocks(stage="mid", blocks=("mid.resnets.0",))
    with pytest.raises(ValidationError, match="listed once"):
        _spec(stages=(stage, stage))
