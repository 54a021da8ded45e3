"""A place in which campaigns run the flow: its folder, configuration and environment."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.published import ROOT

FLOW = ROOT / "flows" / "snapfusion_flow.py"


class Machine:
    """One place; `home` is all that it leaves."""

    def __init__(
        self, home: Path, config: Path, environment: dict[str, str], *, through: Sequence[str] = ()
    ) -> None:
        self.home, self.config = home, config
        self.through = through  # a command that runs the one that follows it
        self.environment = os.environ | environment | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `run` or `resume`; output goes to a log beside the folder."""
        options = ["--config", "config", str(self.config)] if arguments[0] == "run" else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.through, sys.executable, str(FLOW), *options, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        """What the flow printed."""
        return self.home.with_suffix(".log")

    def can_resume(self) -> bool:
        """True when a run has begun a step."""
        return any((self.home / ".metaflow" / "SnapFusionFlow").glob("*/start"))

    def result(self) -> dict[str, Any]:
        """What must be equal, from the report of the newest run."""
        reports = (self.home / ".snapfusion" / "runs").glob("*/report.json")
        report = json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text())
        return {name: report[name] for name in ("inputs", "headline", "comparisons", "evaluations")}


def write_config(path: Path, store: str | None) -> None:
    """The smoke preset with a checkpoint after every iteration, and a store of its own if given."""
    text = (ROOT / "configs" / "smoke.toml").read_text()
    text = text.replace(
        "iterations = 4\nbatch_size = 4\n", "iterations = 8\nbatch_size = 4\ncheckpoint_interval_s = 1e-3\n"
    )
    path.write_text(text + (f'\n[store]\nroot = "{store}"\n' if store else ""))


def uninterrupted(home: Path) -> tuple[float, dict[str, Any]]:
    """Seconds and result of a run that nothing disturbs, in a folder and store of its own."""
    config = home.with_suffix(".toml")
    write_config(config, None)
    machine = Machine(home, config, {})
    started = time.monotonic()
    if machine.start("run").wait() != 0:
        raise RuntimeError(f"the reference failed:\n{machine.log.read_text()[-3000:]}")
    seconds = time.monotonic() - started
    say(f"reference: {seconds:.0f} s")
    return seconds, machine.result()


def say(text: str) -> None:
    """One line of the campaign's log."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)
