"""Makes a flow start the same way everywhere. Call `prepare()` before anything imports metaflow.

Metaflow looks for `.metaflow` from the working directory upward, refuses to run as root, and starts up to 16 tasks at
once. So the entry point moves to the project root, gives Metaflow a user name where the machine has none, and chooses
the number of workers from the machine. The project root is the checkout; for an installed package it is the folder
where the user stands, or `SNAPFUSION_HOME`.
"""

import os
import sys
import tempfile
from pathlib import Path

from flows.termination import end_tasks_first
from steps.files.disk import temporary_folder

# The checkout, or the folder of packages where a wheel was installed: flows, steps, artifacts_schema and configs lie in it.
CODE_ROOT = Path(__file__).resolve().parent.parent
INSTALLED = any(CODE_ROOT.glob("snapfusion_pipeline-*.dist-info"))
# A task on another machine gets a package of code from Metaflow: it is neither installed nor a checkout.
_AT_HOME = INSTALLED or (CODE_ROOT / "pyproject.toml").is_file()


def _project_root() -> Path:
    """The checkout; where the user of an installed package stands; elsewhere what the image names, which holds assets/."""
    if INSTALLED:
        return Path(os.environ.get("SNAPFUSION_HOME", Path.cwd())).resolve()
    return CODE_ROOT if _AT_HOME else Path(os.environ.get("SNAPFUSION_PROJECT", CODE_ROOT)).resolve()


# What relative paths of a configuration count from.
PROJECT_ROOT = _project_root()
# Where runs leave .metaflow and .snapfusion; another place keeps tests and users of one installation apart.
WORK_ROOT = Path(os.environ.get("SNAPFUSION_HOME", PROJECT_ROOT if _AT_HOME else CODE_ROOT)).resolve()
BRANCHES = 3  # tasks of the flow that can train at the same time


def prepare() -> None:
    """Set user name, working directory, argument paths and worker count for this process and the tasks it starts."""
    if _AT_HOME:
        sys.argv[0] = str(
            Path(sys.argv[0]).resolve()
        )  # Metaflow starts every task with it, from another folder
        sys.argv[1:] = absolute_paths(sys.argv[1:], Path.cwd())
    sys.argv[1:] = with_max_workers(sys.argv[1:], usable_cores())
    end_tasks_first(sys.argv[1:])
    prepare_paths()


def prepare_paths() -> None:
    """The part of `prepare` that any program of this project needs, not only a flow."""
    os.environ.setdefault("METAFLOW_USER", _user_name())
    # A card server or a service started from here stays on this machine.
    os.environ.setdefault("MF_METADATA_HOST", "127.0.0.1")
    # transformers and diffusers must never look for a model hub: every model is a local folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Metaflow starts tasks with the same interpreter, which must find flows, steps and artifacts_schema there, too.
    search = os.environ.get("PYTHONPATH", "")
    if str(CODE_ROOT) not in search.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CODE_ROOT), search)))
    if _AT_HOME:
        WORK_ROOT.mkdir(parents=True, exist_ok=True)
        os.chdir(WORK_ROOT)
        # coremltools writes whole models there, and the system's own folder is often small, or memory.
        os.environ["TMPDIR"] = str(temporary_folder(WORK_ROOT / ".snapfusion" / "tmp"))
        tempfile.tempdir = None  # asked for again


def _user_name() -> str:
    for name in ("SUDO_USER", "USERNAME", "USER"):
        value = os.environ.get(name)
        if value and value != "root":
            return value
    return "snapfusion"


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def max_workers(cores: int) -> int:
    """Tasks that run at once: one per branch of the flow, but only one where they would share a GPU's memory.

    On two cores two tasks of one thread do 1.3 times the work of one task of two threads (measured with the embedded
    UNet, batch 16: 0.51 s a step each against 0.35 s), and the start of one task overlaps with the work of the other.
    """
    return 1 if Path("/dev/nvidia0").exists() else min(BRANCHES, cores)


def threads_per_task(cores: int) -> int:
    """Threads of one task, so that all tasks together have one per core: more would wait for each other."""
    return max(1, cores // max_workers(cores))


def absolute_paths(arguments: list[str], folder: Path) -> list[str]:
    """Command-line arguments with paths made absolute, so that they survive the change of working directory."""
    result = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 2 < len(arguments):
            result[position + 2] = str((folder / arguments[position + 2]).resolve())
        elif argument == "--run-id-file" and position + 1 < len(arguments):
            result[position + 1] = str((folder / arguments[position + 1]).resolve())
    return result


def with_max_workers(arguments: list[str], cores: int) -> list[str]:
    """Arguments of `run` and `resume` with --max-workers added, unless the user chose one."""
    for command in ("run", "resume"):
        if command in arguments and "--max-workers" not in arguments:
            position = arguments.index(command)
            return [
                *arguments[: position + 1],
                "--max-workers",
                str(max_workers(cores)),
                *arguments[position + 1 :],
            ]
    return list(arguments)
