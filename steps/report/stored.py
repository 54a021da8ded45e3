"""The records that a finished run's report names, read back from the store. Imports no torch."""

from pathlib import Path
from typing import Any

from artifacts_schema.readers import read_record, stored_identity
from artifacts_schema.report import RunReport
from steps.files.errors import DamagedError, StoreError
from steps.store import Store


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
