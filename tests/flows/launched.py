"""Launches of the real flow on the smoke preset, and the same trainings without it, to compare with."""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.config import parse_config
from flows import runtime, stages
from steps.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
FLOW = ROOT / "flows" / "snapfusion_flow.py"
SMOKE = ROOT / "configs" / "smoke.toml"
TRAININGS = (
    "velocity_finetuning", "robust_training", "architecture_evolution", "teacher_16", "student_16", "student_8",
    "decoder_distillation",
)  # fmt: skip
Ended = subprocess.CompletedProcess[str]


def run(home: Path, *arguments: str, script: Path = FLOW, **environment: str) -> Ended:
    """One launch that keeps everything in `home`."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("METAFLOW")}
    # A container's root has no user name, and the caller stands somewhere else: both must work.
    for name in ("USER", "USERNAME", "SUDO_USER"):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, os.path.relpath(script, home.parent), *arguments],
        cwd=home.parent,
        env=variables | {"SNAPFUSION_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )


@dataclass(frozen=True)
class SmokeRun:
    """A finished run of the smoke preset, everything in folders, for tests that only need what it left."""

    home: Path
    printed: str

    def seed(self, home: Path) -> Path:
        """A home with the cache of that run, but none of its reports."""
        left_out = shutil.ignore_patterns("reports", "runs", "leases", "work")
        shutil.copytree(self.home / ".snapfusion" / "store", home / ".snapfusion" / "store", ignore=left_out)
        return home


def smoke_run_once(shared: Path) -> SmokeRun:
    """The one run of a test session; who comes while another process makes it waits."""
    home, printed = shared / "smoke_run", shared / "smoke_run.txt"
    with (shared / "smoke_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            ended = run(home, "--config", "config", str(SMOKE), "run")
            assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
            printed.write_text(ended.stdout)
    return SmokeRun(home, printed.read_text())


def report(home: Path) -> dict[str, Any]:
    """The newest run's report."""
    newest = max((home / ".snapfusion" / "runs").iterdir(), key=lambda folder: int(folder.name))
    found: dict[str, Any] = json.loads((newest / "report.json").read_text())
    return found


def printed_command(name: str, output: str, home: Path, folder: Path, **environment: str) -> str:
    """What the command says that a run printed at its end after `name`; called from `folder`."""
    printed = re.search(rf"{name} +(snapfusion {name} .+)", output)
    assert printed is not None
    result = subprocess.run(
        [sys.executable, "-m", *shlex.split(printed[1])],
        env=os.environ | environment | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def trained_in_one_process(folder: Path) -> dict[str, str]:
    """Identities of the trainings of the smoke preset without Metaflow, S3, cards or a failure, by stage."""
    config = parse_config(tomllib.loads(SMOKE.read_text()) | {"store": {"root": str(folder / "store")}})
    card = SimpleNamespace(append=lambda *_, **__: None, refresh=lambda *_, **__: None)
    task = SimpleNamespace(flow_name="none", run_id="1", origin_run_id=None, card={"progress": card})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "current", task)
        for module in (runtime, stages):
            patch.setattr(module, "WORK_ROOT", folder)
        records: dict[str, Any] = {"start": stages.start(config)}
        for name in ("latency_profile", *TRAININGS):
            records[name] = runtime.run_stage(STAGES[name], config, records)
    return {name: records[name].identity() for name in TRAININGS}
