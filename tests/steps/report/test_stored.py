"""Reports of finished runs are found again, and the records that they name."""

import os
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.readers import read_record
from steps.files.errors import DamagedError, SnapFusionError, StoreError
from steps.report.stored import find_report, record_of
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """With three reports, of runs with a service and without one; 9 is the newest."""
    store = LocalStore(tmp_path)
    report: Any = read_record((RECORDS / "report_v1.json").read_text())
    for time, run in enumerate(("1720000000000000", "argo-x", "9")):
        store.put_document(f"reports/{run}", report.model_copy(update={"name": f"run {run}"}).to_json())
        os.utime(store.folder / "documents" / "reports" / f"{run}.json", (1e9 + time, 1e9 + time))
    return store


def test_the_newest_is_the_default(store: LocalStore) -> None:
    assert find_report(store, None).name == "run 9"
    assert find_report(store, "argo-x").name == "run argo-x"


def test_a_run_without_a_report_is_refused_with_those_that_have_one(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(SnapFusionError, match="run 11 has no report .* known: 1720000000000000, 9, argo-x"):
        find_report(store, "11")
    with pytest.raises(SnapFusionError, match="no finished run in the store"):
        find_report(LocalStore(tmp_path / "empty"), None)


def test_a_record_is_found_by_its_name(store: LocalStore) -> None:
    plan = read_record((RECORDS / "run_plan_v1.json").read_text())
    report = find_report(store, "9")
    report = report.model_copy(update={"inputs": report.inputs | {"start": plan.identity()}})
    with pytest.raises(StoreError, match="the record 'start' of run 1 is no longer in the store"):
        record_of(store, report, "start")
    store.put_document(f"records/{plan.identity()}", plan.to_json())
    assert record_of(store, report, "start") == plan


def test_a_record_under_the_name_of_another_is_refused(store: LocalStore) -> None:
    plan = read_record((RECORDS / "run_plan_v1.json").read_text())
    report = find_report(store, "9")
    store.put_document(f"records/{report.inputs['start']}", plan.model_copy(update={"seed": 99}).to_json())
    with pytest.raises(DamagedError, match="holds another record"):
        record_of(store, report, "start")
