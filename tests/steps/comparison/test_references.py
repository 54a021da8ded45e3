"""Run ids, names, tags and words lead to the runs that are meant; all else is refused in one sentence."""

import os
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.readers import read_record
from steps.comparison import references
from steps.comparison.references import resolve_runs, run_id_of
from steps.files.errors import SnapFusionError
from steps.store import LocalStore

RECORDS = Path(__file__).parents[2] / "fixtures" / "records"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """With the reports of 7 ("nightly"), 8 ("other") and 9 ("nightly"), 9 the newest; 10 has begun."""
    store = LocalStore(tmp_path)
    report: Any = read_record((RECORDS / "report_v1.json").read_text())
    for time, (run, name) in enumerate((("7", "nightly"), ("8", "other"), ("9", "nightly"))):
        changed = report.model_copy(update={"name": name, "folder": f"/runs/{run}"})
        store.put_document(f"reports/{run}", changed.to_json())
        os.utime(store.folder / "documents" / "reports" / f"{run}.json", (1e9 + time, 1e9 + time))
    store.put_document("runs/10/start-abc", "{}")
    return store


def ids(store: LocalStore, *wanted: str, **more: Any) -> list[str]:
    return [run_id_of(report) for report in resolve_runs(store, wanted, **more)]


def test_ids_names_and_words(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "current_champion", lambda _: "7")
    assert ids(store, "8", "latest", "previous", "champion", "nightly", "other") == ["8", "9", "7"]


def test_a_tag_means_its_newest_run_with_a_report(store: LocalStore) -> None:
    assert ids(store, "lr:2e-4", tagged={"lr:2e-4": ["11", "8", "7"]}.__getitem__) == ["8"]


def test_a_report_of_another_machine_is_known_by_its_own_id(store: LocalStore) -> None:
    text = store.get_document("reports/8")
    assert text
    store.put_document("reports/from-argo", text)
    assert ids(store, "from-argo") == ["from-argo"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nigthly", "did you mean 'nightly'"),
        ("10", "run 10 has stages in the store but no report: it is still running"),
        ("", "'' is no run id, name or tag"),
        ("../x", "no run id, name or tag"),
        ("champion", "has no champion yet"),
    ],
)
def test_what_means_no_finished_run_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, wanted: str, words: str
) -> None:
    monkeypatch.setattr(references, "current_champion", lambda _: None)
    with pytest.raises(SnapFusionError, match=words):
        resolve_runs(store, [wanted])


def test_metaflow_may_know_why(store: LocalStore) -> None:
    with pytest.raises(SnapFusionError, match="run 10 is still running"):
        resolve_runs(store, ["10"], explain=lambda run: f"run {run} is still running")


def test_an_empty_store_and_a_champion_without_report(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SnapFusionError, match="no finished run"):
        resolve_runs(LocalStore(tmp_path / "empty"), ["latest"])
    monkeypatch.setattr(references, "current_champion", lambda _: "5")
    with pytest.raises(SnapFusionError, match="run 5, has no report any more"):
        resolve_runs(store, ["champion"])
