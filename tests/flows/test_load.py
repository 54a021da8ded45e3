"""`load_pipeline`: a student from the store or a folder, and what is none."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef
from flows.load import load_pipeline, student_of
from steps.cache.notes import report_of_run
from steps.files.errors import SnapFusionError
from steps.store import LocalStore
from tests.students import MicroStudent, micro_student

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "records" / "report_v1.json"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> MicroStudent:
    made = micro_student(tmp_path_factory.mktemp("student"))
    example: Any = read_record(EXAMPLE.read_text())
    for run, files in {
        "6": {},
        "7": {f"student/{name}": ref for name, ref in made.files.files.items()},
    }.items():
        report = example.model_copy(
            update={"outputs": FolderRef(files=files), "folder": f"runs/{run}", "name": f"run {run}"}
        )
        report_of_run(made.store, run, report, [])
    return made


@pytest.mark.parametrize("reference", ["7", "run 7", "FOLDER"])
def test_a_student_is_loaded_from_run_name_and_folder(student: MicroStudent, reference: str) -> None:
    pipeline = load_pipeline(student.folder if reference == "FOLDER" else reference, student.store)
    loaded = dict(pipeline.unet.state_dict())
    assert all((loaded[name] == value).all() for name, value in student.unet.state_dict().items())
    assert type(pipeline.vae).__name__ == "SmallDecoder"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("6", r"run 6 \(run 6\) left no student"),
        ("8", "8"),
        ("no/folder", "found no folder no/folder"),
        ("EMPTY", "expected the folder of a student"),
    ],
)
def test_what_is_no_student_is_refused(
    student: MicroStudent, tmp_path: Path, reference: str, message: str
) -> None:
    with pytest.raises(SnapFusionError, match=message):
        load_pipeline(tmp_path if reference == "EMPTY" else reference, student.store)


def test_a_run_of_an_older_version_has_no_student(tmp_path: Path) -> None:
    report: Any = read_record(EXAMPLE.read_text())
    with pytest.raises(SnapFusionError, match="left no student"):
        student_of(report)
    with pytest.raises(SnapFusionError, match="no finished run"):
        load_pipeline("latest", LocalStore(tmp_path))
