"""Kills the flow with SIGKILL at random points, in any of its processes, until it is through; the result must be equal.

    python -m benchmarks.kill_resume --times 20 --json benchmarks/results/kill_resume.json
    python -m benchmarks.kill_resume --times 5 --new-machine      # weights on S3; everything on disk is lost each time
    python -m benchmarks.kill_resume --folder kills               # keeps log and counts there; the same command goes on

A run without interruption gives the reference. Then runs are started and, at a random time, one random process among
the flow's own is killed; `resume` goes on (or `run`, when nothing had begun, and always with --new-machine), and is
killed in turn, until one comes through. Then identities of all records (weights, metrics, architecture; not times or
hosts), headline numbers and comparisons must equal the reference. This goes on until --times kills were made, or
--minutes are over; what is published counts only kills of runs that were compared.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import Machine, say, uninterrupted, write_config
from benchmarks.published import Metric, publish, result
from infra.local.seaweedfs import Server, serve

_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Kill:
    """One kill: when (s after the start or the kill before), and what the process was doing."""

    after_s: float
    victim: str


def run_and_kill(
    machine: Machine, command: str, draw: random.Random, longest_s: float, most: int
) -> tuple[list[Kill], bool]:
    """Start the flow and kill processes of its, at most `most`, at random times until it ends.

    Returns the kills, and whether the flow came through: some of its processes, such as one that draws a card, can be
    killed without ending it; then there is another kill.
    """
    process = machine.start(command)
    group = psutil.Process(process.pid)
    everything, kills = [group], []
    while True:
        after_s = draw.uniform(0.5, longest_s)
        try:
            process.wait(after_s if len(kills) < most else _LONGEST_S)
            break
        except subprocess.TimeoutExpired:
            everything = [group, *_children(group)]
            victim = draw.choice(everything)
            kills.append(Kill(after_s, _describe(victim)))
            say(f"killed {kills[-1].victim} {after_s:.1f} s after the last event of {command}")
            _end([victim])
    _end(everything)  # tasks whose runner was killed would work on
    psutil.wait_procs(everything, timeout=10)
    if not kills and process.returncode != 0:
        raise RuntimeError(
            f"the flow failed by itself; see {machine.log}:\n{machine.log.read_text()[-3000:]}"
        )
    return kills, process.returncode == 0


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
        new, through = run_and_kill(machine, command, draw, longest_s, most - len(kills))
        kills += new
        if through:
            return kills
        if new_machine:
            shutil.rmtree(machine.home)


@contextmanager
def server_if(wanted: bool, folder: Path) -> Iterator[Server | None]:
    """An S3 server, when one is wanted."""
    if not wanted:
        yield None
        return
    with serve(folder / "server", stop_s=0.0) as server:
        server.create_bucket("kills")
        yield server


@dataclass
class Tally:
    """What a campaign has found so far; kept in its folder after every run that came through."""

    path: Path
    seconds: float = 0.0
    expected: dict[str, Any] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    different: int = 0

    @classmethod
    def load(cls, path: Path) -> "Tally":
        """The tally of an earlier start in the same folder, or a new one."""
        if not path.is_file():
            return cls(path)
        kept = json.loads(path.read_text())
        kept["kills"] = [Kill(**kill) for kill in kept["kills"]]
        return cls(path, **kept)

    def keep(self) -> None:
        """Write it down."""
        payload = {name: value for name, value in asdict(self).items() if name != "path"}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(payload))
        partial.replace(self.path)


def campaign(options: argparse.Namespace, folder: Path) -> Tally:
    """All kills, the number of runs that came through, and how many of them differed from the reference."""
    tally = Tally.load(folder / "tally.json")
    until = time.monotonic() + options.minutes * 60.0
    with server_if(options.new_machine, folder) as server:
        environment = server.environment() if server else {}
        if not tally.expected:
            measure_reference(tally, folder)
        while len(tally.kills) < options.times and time.monotonic() + tally.seconds < until:
            home = folder / f"run-{tally.runs}"  # what a campaign that was cut off left there is gone on with
            config = home.with_suffix(".toml")
            write_config(config, f"s3://kills/{home.name}" if server else None)
            machine = Machine(home, config, environment)
            draw = random.Random(f"{options.seed}/{tally.runs}")  # noqa: S311
            tally.kills += killed_until_through(
                machine, draw, tally.seconds * options.longest, new_machine=options.new_machine,
                most=options.times - len(tally.kills),
            )  # fmt: skip
            tally.runs += 1
            equal = machine.result() == tally.expected
            tally.different += not equal
            tally.keep()
            say(f"run {tally.runs}: {'equal' if equal else 'DIFFERENT'}, {len(tally.kills)} kills so far")
            publish(document(tally, options), options.json)
            if equal:
                shutil.rmtree(machine.home)
    return tally


def measure_reference(tally: Tally, folder: Path) -> None:
    """Run once without interruption."""
    tally.seconds, tally.expected = uninterrupted(folder / f"reference-{os.getpid()}")
    tally.keep()


def document(tally: Tally, options: argparse.Namespace) -> dict[str, object]:
    """What is published."""
    kills, runs, different = tally.kills, tally.runs, tally.different
    note = "; ".join(f"{kill.victim} after {kill.after_s:.1f} s" for kill in kills)
    mode = "new_machine" if options.new_machine else "resume"
    rows = [
        Metric(f"kills.{mode}.made", len(kills), "kills", len(kills), len(kills), len(kills), note),
        Metric(f"kills.{mode}.runs", runs, "runs", len(kills), runs, runs, "runs that came through"),
        Metric(
            f"kills.{mode}.different", different, "runs", len(kills), different, different,
            f"unlike the uninterrupted run, which took {tally.seconds:.0f} s",
        ),
    ]  # fmt: skip
    return result(rows, module="benchmarks.kill_resume", seed=options.seed)


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
    parser.add_argument(
        "--longest",
        type=float,
        default=0.4,
        help="latest kill after a start, as a share of the reference's time",
    )
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no run that would end later")
    parser.add_argument("--folder", type=Path, help="keep log and counts here, and go on from them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tally = campaign(options, folder)
    publish(document(tally, options), options.json)
    return 1 if tally.different else 0


if __name__ == "__main__":
    sys.exit(main())
