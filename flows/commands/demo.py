"""A page to try a student: type a prompt, and base and student draw it side by side from the same noise.

    snapfusion demo                                   # the runs in the store, the newest first
    snapfusion demo --student somewhere/student       # a folder, without any run
    snapfusion demo --student fetched --base my/base --port 8000

It takes the extra `demo` (Gradio) and listens on this machine only, unless --host says otherwise. The base of a folder
is the included one where that reads prompts with the same text encoder, or the one that --base names.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.commands.prepared import as_called, exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import PROJECT_ROOT, WORK_ROOT
from flows.load import STUDENT, load_pipeline, open_pipeline, student_folder
from steps.cache.leases import in_use
from steps.comparison.references import finished_runs, report_of
from steps.files.errors import SnapFusionError
from steps.report.stored import record_of
from steps.store import Store, open_store
from steps.store.base import get_folder

SHIPPED = PROJECT_ROOT / "assets" / "student"
_INCLUDED_BASE = PROJECT_ROOT / "assets" / "base"
_RUNS = 20  # newest runs that can be chosen
_GUIDANCE = 3.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.demo", __doc__)
    parser.add_argument(
        "--student", type=Path, action="append", default=[], help="a student's folder; may be repeated"
    )
    parser.add_argument(
        "--base", type=Path, help="the base of those folders; default: the included one, if it is"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run source in --student that is not ours"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=7860)
    return parser


def main() -> int:
    """Parse, collect the students, serve the page."""
    arguments = build_parser().parse_args()

    def work() -> None:
        if find_spec("gradio") is None:
            raise SnapFusionError(
                "the page takes Gradio, which is not installed: pip install 'snapfusion-pipeline[demo]'"
            )
        check_port(arguments.host, arguments.port)
        store = open_store(store_config(arguments), WORK_ROOT)
        students = {**from_folders(arguments), **from_store(store)}
        if not students:
            raise SnapFusionError(
                f"expected a student to show, found none in the store {store.root} nor in {SHIPPED}; run the flow first, "
                "or name a folder with --student"
            )
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        from flows.demo_page import build_page, serve

        page = build_page(students, steps=8, guidance_scale=_GUIDANCE)
        print(f"http://{arguments.host}:{arguments.port}  (Ctrl-C ends it)", flush=True)
        with in_use(store, "demo"):
            serve(page, host=arguments.host, port=arguments.port)

    return exit_code(work)


def check_port(host: str, port: int) -> None:
    """Raises SnapFusionError where nobody can listen: the port is in use, out of range, or not for this user."""
    if not 0 < port < 1 << 16:
        raise SnapFusionError(f"expected a port between 1 and 65535, found port {port}")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise SnapFusionError(
            f"cannot listen on {host} port {port} ({error}); choose another with --port"
        ) from error


def from_folders(arguments: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """What opens each folder that was named, or else the one that ships, by the text that stands for it."""
    folders = [as_called(path) for path in arguments.student] or [SHIPPED] * (
        SHIPPED / "model_index.json"
    ).is_file()
    base = as_called(arguments.base) if arguments.base else None
    for folder in folders:
        if not (folder / "model_index.json").is_file():
            raise SnapFusionError(f"expected the folder of a student, found no model_index.json in {folder}")
    return {str(f): partial(_open_folder, f, base, trust=arguments.trust_remote_code) for f in folders}


def from_store(store: Store) -> Mapping[str, Callable[[], Any]]:
    """What opens each of the newest runs with a student, by its id and name."""
    found: dict[str, Callable[[], Any]] = {}
    for run in finished_runs(store)[:_RUNS]:
        report = report_of(store, run)
        if report.outputs and any(name.startswith(STUDENT) for name in report.outputs.files):
            found[f"run {run}: {report.name}"] = partial(_open_run, store, run)
    return found


def _open_folder(folder: Path, base: Path | None, *, trust: bool) -> Any:
    from steps.report.side_by_side import SideBySide, base_pipeline, is_base_of

    student = quiet(load_pipeline(folder, trust_remote_code=trust))
    if base is None and is_base_of(_INCLUDED_BASE, folder):
        base = _INCLUDED_BASE
    return SideBySide(student, quiet(base_pipeline(base)) if base else None)


def _open_run(store: Store, run: str) -> Any:
    from steps.report.side_by_side import SideBySide, base_pipeline

    with student_folder(run, store) as folder:
        student = quiet(open_pipeline(folder))
    plan = record_of(store, report_of(store, run), "start")
    with TemporaryDirectory(dir=store.work_folder("student")) as scratch:
        get_folder(store, plan.base, Path(scratch))
        return SideBySide(student, quiet(base_pipeline(Path(scratch))))


def quiet(pipeline: Any) -> Any:
    """The pipeline without progress bars, on a GPU if there is one."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda") if torch.cuda.is_available() else pipeline


if __name__ == "__main__":
    sys.exit(main())
