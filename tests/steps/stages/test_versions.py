"""A stage whose source changed must be given a new version, else the cache would return results of other code."""

from steps.stages.table import STAGES
from steps.stages.versions import changed_stages, source_hash, stage_version


def test_no_stage_changed_without_a_new_version() -> None:
    assert changed_stages() == [], (
        "the source of these stages changed; run `python -m steps.stages.versions --raise` "
        "(or --keep if no result can change)"
    )


def test_every_stage_has_a_version() -> None:
    assert all(stage_version(stage) >= 1 for stage in STAGES)


def test_stages_depend_on_what_they_import() -> None:
    assert source_hash("student_8") == source_hash("teacher_16") != source_hash("robust_training")
