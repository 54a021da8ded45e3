"""Kills the flow with SIGKILL at random points, in any of its processes, until it is through; the result must be equal.

    python -m benchmarks.kill_resume --times 20 --json benchmarks/results/kill_resume.json
    python -m benchmarks.kill_resume --times 5 --new-machine      # weights on S3; everything on disk is lost each time

A run without interruption gives the reference. Then runs are started and, at a random time, one random process among
the flow's own is killed; `resume` goes on (or `run`, when nothing had begun, and always with --new-machine), and is
killed in turn, until one comes through. Then identities of all records (weights, metrics, architecture; not times or
hosts), headline numbers and comparisons must equal the reference. This goes on until --times kills were made.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.published import ROOT, Metric, publish, result
from infra.local.seaweedfs import Server, serve

FLOW = ROOT / "flows" / "snapfusion_flow.py"
_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Kill:
    """One kill: when (s after the start), and what the process was doing."""

    after_s: float
    victim: str


class Machine:
    """A place to run the flow: its folder, configuration and environment."""

    def __init__(self, home: Path, config: Path, environment: dict[str, str]) -> None:
        self.home, self.config = home, config
        self.environment = os.environ | environment | {"SNAPFUSION_HOME": str(home), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `run` or `resume`; output goes to a log beside the folder."""
        options = ["--config", "config", str(self.config)] if arguments[0] == "run" else []
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(FLOW), *options, *arguments],
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


def run_and_kill(
    machine: Machine, command: str, draw: random.Random, longest_s: float
) -> tuple[Kill | None, bool]:
    """Start the flow and kill one of its processes at a random time.

    Returns the kill (None when the flow ended before), and whether the flow came through: some of its processes, such as
    one that draws a card, can be killed without ending it.
    """
    process = machine.start(command)
    group = psutil.Process(process.pid)
    after_s, kill = draw.uniform(0.5, longest_s), None
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        victim = draw.choice([group, *_children(group)])
        kill = Kill(after_s, _describe(victim))
        everything = [group, *_children(group)]
        _end([victim])
        process.wait(_LONGEST_S)
        _end(everything)  # tasks whose runner was killed would work on
        psutil.wait_procs(everything, timeout=10)
    if kill is None and process.returncode != 0:
        raise RuntimeError(
            f"the flow failed by itself; see {machine.log}:\n{machine.log.read_text()[-3000:]}"
        )
    return kill, process.returncode == 0


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _end(processes: list[psutil.Process]) -> None:
    """SIGKILL for processes of this flow, by their ids; psutil refuses an id that belongs to another one by now."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def _describe(process: psutil.Process) -> str:
    """Which task a process is, from its command line."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return "ending"
    if "step" in line:
        return f"task {line[line.index('step') + 1]}"
    return (
        "runner"
        if any("snapfusion_flow" in part for part in line)
        else Path(line[0]).name
        if line
        else "ending"
    )


def killed_until_through(
    machine: Machine, draw: random.Random, longest_s: float, *, new_machine: bool, most: int
) -> list[Kill]:
    """Kill and go on, at most `most` times, then let it come through."""
    kills: list[Kill] = []
    while True:
        command = "resume" if not new_machine and machine.can_resume() else "run"
        longest_s = longest_s if len(kills) < most else _LONGEST_S
        kill, through = run_and_kill(machine, command, draw, longest_s)
        if kill is not None:
            kills.append(kill)
            print(
                f"killed {kill.victim} after {kill.after_s:.1f} s of {command}", file=sys.stderr, flush=True
            )
        if through:
            return kills
        if new_machine:
            shutil.rmtree(machine.home)


def write_config(path: Path, store: str | None) -> None:
    """The smoke preset with a checkpoint after every iteration, and a store of its own if given."""
    text = (ROOT / "configs" / "smoke.toml").read_text()
    text = text.replace(
        "iterations = 4\nbatch_size = 4\n", "iterations = 8\nbatch_size = 4\ncheckpoint_interval_s = 1e-3\n"
    )
    path.write_text(text + (f'\n[store]\nroot = "{store}"\n' if store else ""))


@contextmanager
def server_if(wanted: bool, folder: Path) -> Iterator[Server | None]:
    """An S3 server, when one is wanted."""
    if not wanted:
        yield None
        return
    with serve(folder / "server", stop_s=0.0) as server:
        server.create_bucket("kills")
        yield server


def campaign(options: argparse.Namespace, folder: Path) -> tuple[list[Kill], int, int]:
    """All kills, the number of runs that came through, and how many of them differed from the reference."""
    draw = random.Random(options.seed)  # noqa: S311
    kills: list[Kill] = []
    runs = different = 0
    with server_if(options.new_machine, folder) as server:
        environment = server.environment() if server else {}
        write_config(folder / "reference.toml", None)
        reference = Machine(folder / "reference", folder / "reference.toml", {})
        started = time.monotonic()
        if reference.start("run").wait() != 0:
            raise RuntimeError(f"the reference failed:\n{reference.log.read_text()[-3000:]}")
        seconds = time.monotonic() - started
        print(f"reference: {seconds:.0f} s", file=sys.stderr, flush=True)
        expected = reference.result()
        while len(kills) < options.times:
            config = folder / f"run-{runs}.toml"
            write_config(config, f"s3://kills/run-{runs}" if server else None)
            machine = Machine(folder / f"run-{runs}", config, environment)
            kills += killed_until_through(
                machine, draw, seconds * 0.6, new_machine=options.new_machine, most=options.times - len(kills)
            )
            runs += 1
            equal = machine.result() == expected
            different += not equal
            print(
                f"run {runs}: {'equal' if equal else 'DIFFERENT'}, {len(kills)} kills so far", file=sys.stderr
            )
            if equal:
                shutil.rmtree(machine.home)
    return kills, runs, different


def main() -> int:
    """Run the campaign and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--new-machine", action="store_true", help="store on S3; the disk is lost with every kill"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kills, runs, different = campaign(options, Path(name))
    note = "; ".join(f"{kill.victim} after {kill.after_s:.1f} s" for kill in kills)
    mode = "new_machine" if options.new_machine else "resume"
    rows = [
        Metric(f"kills.{mode}.different", different, "runs", len(kills), different, different, note),
        Metric(f"kills.{mode}.runs", runs, "runs", len(kills), runs, runs, "runs that came through"),
    ]
    publish(result(rows, module="benchmarks.kill_resume", seed=options.seed), options.json)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
