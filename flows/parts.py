"""What the flow does with stages that a run was not asked for (`run.skip`): the graph is the same for every run."""

from collections.abc import Mapping
from typing import Any

from metaflow import current

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import STARTS_FROM, SkippedRecord, variants_of
from flows.cards import render
from steps.evaluation.variants import COMPRESSED
from steps.report.content import Text
from steps.report.parts import skipped_words


def skipped(stage: str, records: Mapping[str, Any]) -> SkippedRecord:
    """The record of a stage that is left out, said in the terminal and on the task's card."""
    record = skipped_record(stage, records)
    words = skipped_words(record)
    print(words)
    render(current.card["progress"], [Text(words)])
    return record


def skipped_record(stage: str, records: Mapping[str, Any]) -> SkippedRecord:
    """Hands on the weights of the stage that this one would have started from."""
    start = records[STARTS_FROM[stage]] if STARTS_FROM[stage] else None
    if start is None:
        return SkippedRecord(stage=stage)
    if isinstance(start, SkippedRecord):
        return start.model_copy(update={"stage": stage, "parents": (start.identity(),)})
    return SkippedRecord(
        stage=stage,
        parents=(start.identity(),),
        hands_on=STARTS_FROM[stage],
        weights=start.weights,
        grid_steps=getattr(start, "grid_steps", None),
    )


def variants(config: SnapFusionConfig) -> list[str]:
    """The variants that have a task; those that this run does not make are named and left out.

    The packages that ship have none: they are drawn with once there is a bundle.
    """
    asked = config.evaluation.variants
    made = variants_of(asked, config.run.skip)
    left_out = [variant for variant in asked if variant not in made]
    if left_out:
        print(f"evaluation: left out {', '.join(left_out)}, which this run does not make (run.skip)")
    return [variant for variant in made if variant != COMPRESSED]
