"""The report's part on what a run was not asked for. Imports no torch."""

from collections.abc import Mapping

from artifacts_schema.base import Record
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import SkippedRecord, made_by
from steps.report.content import Block, Heading, Table, Text

_UNETS = {
    "": "the base's UNet",
    "velocity_finetuning": "the base's UNet, predicting v",
    "architecture_evolution": "the pruned UNet",
    "student_16": "the student of student_16",
    "student_8": "the student of student_8",
}


def skipped_words(record: SkippedRecord) -> str:
    """What a stage that was left out did instead."""
    what = f"the weights of {record.hands_on}" if record.hands_on else "the base's own"
    return f"{record.stage}: skipped, not asked for (run.skip); hands on {what}"


def ships_words(config: SnapFusionConfig) -> str:
    """A label for runs that did only a part of the method; "" for all others."""
    skip = config.run.skip
    if not skip:
        return ""
    decoder = "the base's decoder" if "decoder_distillation" in skip else "the small decoder"
    unet = _UNETS[made_by("student_8", skip)]
    return f"only a part of the method: skipped {', '.join(skip)}; what ships is {unet} with {decoder}"


def skipped(stages: Mapping[str, Record]) -> list[Block]:
    """The blocks; none for a run that left nothing out."""
    found = [record for record in stages.values() if isinstance(record, SkippedRecord)]
    if not found:
        return []
    rows = tuple((record.stage, record.hands_on or "the base's own") for record in found)
    return [
        Heading("Skipped"),
        Text("Not asked for (run.skip); every later stage was given the weights named here."),
        Table(("stage", "hands on the weights of"), rows),
    ]
