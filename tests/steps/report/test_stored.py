"""The records that a finished run's report names are found again."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.readers import read_record
from steps.files.errors import DamagedError, StoreError
from steps.report.stored import record_of
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


@pytest.fixture
def report() -> Any:
    return read_record((RECORDS / "report_v1.json").read_text())


def test_a_record_is_found_by_its_name(report: Any, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan = read_record((RECORDS / "run_plan_v1.json").read_text())
    report = report.model_copy(update={"inputs": report.inputs | {"start": plan.identity()}})
    with pytest.raises(StoreError, match="the record 'start' of run 1 is no longer in the store"):
        record_of(store, report, "start")
    store.put_document(f"records/{plan.identity()}", plan.to_json())
    assert record_of(store, report, "start") == plan


def test_a_record_under_the_name_of_another_is_refused(report: Any, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan = read_record((RECORDS / "run_plan_v1.json").read_text())
    store.put_document(f"records/{report.inputs['start']}", plan.model_copy(update={"seed": 99}).to_json())
    with pytest.raises(DamagedError, match="holds another record"):
        record_of(store, report, "start")
