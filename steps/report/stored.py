"""Reports of finished runs and the records they name, read back from the store. Imports no torch."""

from pathlib import Path
from typing import Any

from artifacts_schema.readers import read_record, stored_identity
from artifacts_schema.report import RunReport
from steps.files.errors import DamagedError, SnapFusionError, StoreError
from steps.store import Store


def find_report(store: Store, run_id: str | None) -> RunReport:
    """The named run's report, or the newest, of whatever version. Raises SnapFusionError naming the runs that are there."""
    keys = store.list_documents("reports/")
    if not keys:
        raise SnapFusionError(
            f"no finished run in the store {store.root}; run the flow first, or name its --store"
        )
    # By time and not by id: those of a service and those made without one count differently, and some are no numbers.
    newest = min(store.documents("reports/"), key=lambda entry: entry.age_s).name
    key = newest if run_id is None else f"reports/{run_id}"
    text = store.get_document(key)
    if text is None:
        known = ", ".join(key.removeprefix("reports/") for key in keys)
        raise SnapFusionError(f"run {run_id} has no report in the store {store.root}; known: {known}")
    return RunReport.from_json(text)


def record_of(store: Store, report: RunReport, name: str) -> Any:
    """A record of a finished run by its name in the report. Raises StoreError when it is gone, DamagedError when it is
    another than the report names.
    """
    identity = report.inputs.get(name)
    text = store.get_document(f"records/{identity}")
    if text is None:
        raise StoreError(
            f"the record '{name}' of run {Path(report.folder).name} is no longer in the store {store.root}"
        )
    if stored_identity(text) != identity:
        raise DamagedError(
            f"document records/{identity} in {store.root} holds another record; restore it from a backup"
        )
    return read_record(text)
