"""What a run leaves for people, out of the store: bundle, student, report.json and pictures. Imports no torch."""

from pathlib import Path

from artifacts_schema.report import RunReport
from steps.files.errors import SnapFusionError
from steps.store import Store
from steps.store.base import get_folder


def fetch_outputs(store: Store, report: RunReport, folder: Path) -> None:
    """Write a run's outputs into `folder`, over an earlier copy; what else lies there stays.

    Raises SnapFusionError for a run whose outputs were not stored, StoreError or DamagedError as the store does.
    """
    if report.outputs is None:
        raise SnapFusionError(
            f"run {Path(report.folder).name} was made by a version that stored no outputs; they are in {report.folder} "
            "on the machine that made it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    get_folder(store, report.outputs, folder)
    # Last: a folder with a report is complete.
    (folder / "report.json").write_text(report.to_json() + "\n", encoding="utf-8")
