"""Reports of finished runs are found again, whatever version wrote them."""

from pathlib import Path

import pytest

from artifacts_schema.readers import read_record
from steps.files.errors import SnapFusionError, StoreError
from steps.report.stored import find_report, record_of
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """With a report of each version; run 10 is newer than run 9."""
    store = LocalStore(tmp_path)
    store.put_document("reports/9", (RECORDS / "report_v1.json").read_text())
    store.put_document("reports/10", (RECORDS / "report_v1.json").read_text())
    return store


def test_an_old_report_is_found(store: LocalStore) -> None:
    assert find_report(store, "9").code is None
    store.delete_document("reports/10")
    assert find_report(store, None).name == "smoke"


def test_the_newest_is_the_default(store: LocalStore) -> None:
    assert find_report(store, None).code is not None


def test_a_run_without_a_report_is_refused_with_those_that_have_one(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(SnapFusionError, match="run 11 has no report .* known: 10, 9"):
        find_report(store, "11")
    with pytest.raises(SnapFusionError, match="no finished run in the store"):
        find_report(LocalStore(tmp_path / "empty"), None)


def test_a_record_is_found_by_its_name_whatever_its_version(store: LocalStore) -> None:
    report, text = find_report(store, "9"), (RECORDS / "run_plan_v1.json").read_text()
    with pytest.raises(StoreError, match="the record 'start' of run 1 is no longer in the store"):
        record_of(store, report, "start")
    store.put_document(f"records/{report.inputs['start']}", text)
    assert record_of(store, report, "start") == read_record(text)
