"""A flow that is asked to end: its tasks write checkpoints, the runner waits for them, `resume` goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from steps.files.progress import NullProgress
from steps.training.checkpoint import checkpoint_folders
from tests.flows import stopped_training
from tests.flows.stopped_training import STOPPED_AT, train_toy

pytestmark = pytest.mark.usefixtures("signals_are_heard")


@dataclass(frozen=True)
class Ended:
    """What a stopped flow has left."""

    status: int
    printed: str
    orphans: list[psutil.Process]


def start(folder: Path, command: str, **variables: str) -> subprocess.Popen[str]:
    """The flow, in a process group of its own, as a terminal's foreground program is."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("METAFLOW")}
    return subprocess.Popen(
        [sys.executable, stopped_training.__file__, command],
        env=clean | {"SNAPFUSION_HOME": str(folder / "home"), "TOY_FOLDER": str(folder)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stopped(folder: Path, stop: Callable[[int], None], **variables: str) -> Ended:
    """Start it, call `stop` with the runner's id in the middle of a task's work, and wait for its end."""
    runner = start(folder, "run", **variables)
    try:
        while not (folder / "may_be_stopped").exists():
            assert runner.poll() is None, runner.communicate()[0]
            time.sleep(0.05)
        tasks = psutil.Process(runner.pid).children(recursive=True)
        stop(runner.pid)
        printed, _ = runner.communicate(timeout=120)
        return Ended(runner.returncode, printed, [task for task in tasks if task.is_running()])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)


def sigterm_twice(pid: int) -> None:
    """To the runner only; some schedulers say it twice."""
    os.kill(pid, signal.SIGTERM)
    time.sleep(1.0)
    os.kill(pid, signal.SIGTERM)


def ctrl_c(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


def closed_terminal(pid: int) -> None:
    os.killpg(pid, signal.SIGHUP)


@pytest.mark.parametrize("stop", [sigterm_twice, ctrl_c])
def test_a_stopped_flow_leaves_a_checkpoint_and_resume_goes_on(
    tmp_path: Path, stop: Callable[[int], None]
) -> None:
    ended = stopped(tmp_path, stop)
    assert ended.status > 0
    assert ended.orphans == []
    assert "finished successfully" not in ended.printed
    assert f"Interrupted: stopped at iteration {STOPPED_AT};" in ended.printed
    assert ended.printed.strip().endswith("; `resume` goes on from the last checkpoints.")
    assert [path.name for path in checkpoint_folders(tmp_path / "checkpoints")] == ["checkpoint-000000003"]

    if stop is ctrl_c:
        return
    resumed = start(tmp_path, "resume")
    printed, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, printed
    straight = train_toy(tmp_path / "straight", NullProgress(), waits=False)
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == straight.keys()
    assert all(torch.equal(value, found[name]) for name, value in straight.items())


def test_a_flow_that_does_not_train_ends_at_once(tmp_path: Path) -> None:
    ended = stopped(tmp_path, closed_terminal, TOY_WORKS="yes")
    assert ended.status > 0
    assert ended.orphans == []


def test_only_another_ctrl_c_ends_the_waiting() -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    code = f"""
import subprocess, sys
from flows.termination import end_tasks_first
end_tasks_first(["run"])
task = subprocess.Popen([sys.executable, "-c", {stubborn!r}], stderr=subprocess.DEVNULL)
try:
    task.wait()
finally:
    task.kill()
"""
    runner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert runner.stdout is not None
    assert runner.stderr is not None
    try:
        runner.stdout.readline()
        runner.send_signal(signal.SIGTERM)
        assert "SIGTERM: waiting for the running tasks" in runner.stderr.readline()
        for number in (signal.SIGTERM, signal.SIGHUP):
            runner.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                runner.wait(1.0)
        runner.send_signal(signal.SIGINT)
        _, printed = runner.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)
    assert runner.returncode != 0
    assert "The run was stopped by SIGTERM" in printed
