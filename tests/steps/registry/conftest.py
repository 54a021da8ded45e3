"""A store with finished runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts_schema.references import FolderRef
from artifacts_schema.report import RunReport
from steps.store import LocalStore, Store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store", durable=False)


def finish(store: Store, run: str) -> RunReport:
    """Leave the report and the bundle of a run."""
    manifest = store.put_bytes(f"bundle of {run}".encode())
    report = RunReport(
        stage="report",
        name=run,
        smoke=False,
        inputs={},
        headline={},
        outputs=FolderRef(files={"bundle/manifest.json": manifest}),
        folder=f"/runs/{run}",
    )
    store.put_document(f"reports/{run}", report.to_json())
    return report


@pytest.fixture
def finished(store: LocalStore) -> Callable[[str], RunReport]:
    return lambda run: finish(store, run)
