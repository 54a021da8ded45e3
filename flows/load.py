"""A student as a diffusers pipeline, from a run of the store or from a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts_schema.references import FolderRef
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import StoreConfig
from flows.environment import WORK_ROOT
from steps.comparison.references import resolve_runs
from steps.files.errors import SnapFusionError
from steps.store import Store, open_store
from steps.store.base import get_folder

STUDENT = "student/"
"""Where a run's outputs have its student (steps/report/student.py)."""


def load_pipeline(
    run_or_folder: str | Path = "latest", store: Store | None = None, *, trust_remote_code: bool = False
) -> Any:
    """A diffusers StableDiffusionPipeline with the student in it, float32, on the CPU.

    `run_or_folder` is a run id, a run's name, `latest` or `champion`, looked for in `store` (default: where runs on this
    machine keep theirs), or a student's folder: that of a run's outputs, one that was fetched, one that was saved. A
    folder's source files are run only if this version of the pipeline would have written them, or with
    `trust_remote_code`. Raises SnapFusionError for a folder that is no student, a run without a student or a run that
    there is not.
    """
    folder = Path(run_or_folder).expanduser()
    if not folder.is_dir():
        if "/" in str(run_or_folder):
            raise SnapFusionError(
                f"expected a run id or a student's folder, found no folder {run_or_folder}; "
                "`snapfusion fetch owner/name` gets one from a hub"
            )
        with student_folder(str(run_or_folder), store) as fetched:
            return open_pipeline(fetched)
    if not trust_remote_code:
        from steps.export.diffusers_folder import check_code

        check_code(folder)
    return open_pipeline(folder)


@contextmanager
def student_folder(run: str, store: Store | None = None) -> Iterator[Path]:
    """A copy of a run's student, there as long as the context. Raises SnapFusionError, see `load_pipeline`."""
    store = open_store(StoreConfig(), WORK_ROOT) if store is None else store
    (report,) = resolve_runs(store, [run])
    ref = student_of(report)
    with TemporaryDirectory(dir=store.work_folder("student")) as folder:
        get_folder(store, ref, Path(folder))
        yield Path(folder)


def student_of(report: RunReport) -> FolderRef:
    """The stored files of a run's student, by path in its folder. Raises SnapFusionError for a run without one."""
    files = report.outputs.files if report.outputs else {}
    found = {name.removeprefix(STUDENT): ref for name, ref in files.items() if name.startswith(STUDENT)}
    if not found:
        raise SnapFusionError(
            f"run {Path(report.folder).name} ({report.name}) left no student: it was made by an older version, or was "
            "not asked for one; run it again, finished stages come from the cache"
        )
    return FolderRef(files=found)


def open_pipeline(folder: Path) -> Any:
    """The pipeline in a folder whose code is trusted. Raises SnapFusionError for one that cannot be loaded."""
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapFusionError(f"the student in {folder} cannot be loaded: {error}") from error
