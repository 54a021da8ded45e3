"""What a run's outputs have of its student: the whole folder with its card, or nothing."""

from pathlib import Path
from typing import Any

from artifacts_schema.base import Record
from artifacts_schema.readers import read_record
from steps.report.page import RunRecords
from steps.report.student import student_files
from steps.store.base import get_bytes
from tests.students import micro_student

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


def stored(name: str) -> Any:
    return read_record((RECORDS / f"{name}.json").read_text())


def test_the_folder_and_its_card_are_among_the_outputs(tmp_path: Path) -> None:
    student, training, report = micro_student(tmp_path), stored("training_v1"), stored("report_v1")
    decoder = training.model_copy(update={"weights": student.decoder_ref, "metrics": {}})
    everything: dict[str, Record] = {
        "start": stored("run_plan_v1").model_copy(update={"base": student.base_ref}),
        "student_8": training.model_copy(update={"weights": student.unet_ref}),
        "decoder_distillation": decoder,
    }
    records = RunRecords(
        "run", True, stored("latency_v1"), {"decoder_distillation": decoder}, stored("evolution_v1"), [], [], [], [],
        stored("bundle_v1"),
    )  # fmt: skip
    files = student_files(student.store, records, everything, report)
    card = get_bytes(student.store, files.pop("student/README.md")).decode()
    assert "## Use" in card
    assert {name for name in files if not name.startswith("student/pictures/")} == {
        f"student/{name}" for name in student.files.files
    }
    del everything["student_8"]
    assert student_files(student.store, records, everything, report) == {}
