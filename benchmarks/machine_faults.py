"""Runs the whole smoke flow on a machine that misbehaves; in the end the result must be that of an undisturbed run.

    python -m benchmarks.machine_faults --times 2 --json benchmarks/results/machine_faults.json

    disk_full       the disk with store, checkpoints and Metaflow's files is filled at a random moment: the run must stop
                    with a clear error and, when there is room again, `resume` must end equal
    read_only       the file system of the store becomes read-only at a random moment: likewise
    temporary_full  /tmp has no room from the beginning: the run must not notice
    clock_jumps     the wall clock jumps by up to two days, forwards and back, every few seconds: the run must not notice

Needs root (small file systems are mounted) and, for clock_jumps, a C compiler. A fault that cannot be made here is left
out, with a message.
"""

import argparse
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine, say, uninterrupted, write_config
from benchmarks.published import ROOT, Metric, publish, result

_WALL_CLOCK = Path(__file__).with_name("wall_clock.c")
# For one program and its children only: /tmp is another file system, and full.
_FULL_TMP = (
    """mount -t tmpfs -o size=64k tmpfs /tmp && { cat /dev/zero > /tmp/filler 2>/dev/null; exec "$@"; }"""
)
_ROOM = "2g"
_DAY_S = 86_400.0
_CLEAR = {"disk_full": "no space left", "read_only": "read-only"}  # what a clear error says, in any case


@dataclass
class Outcome:
    """What came of all tries of one fault."""

    times: int = 0
    stopped: int = 0
    clear: int = 0
    different: int = 0
    seconds: list[float] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size. Raises CalledProcessError where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no room at all."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)
    return path


def set_writable(folder: Path, *, writable: bool) -> None:
    """Mount again, writable or not; a file that is being written delays that."""
    for _ in range(2000):
        options = f"remount,{'rw' if writable else 'ro'}"
        done = subprocess.run(["mount", "-o", options, str(folder)], capture_output=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.02)
    raise RuntimeError(f"{folder} cannot be mounted again: {done.stderr.decode()}")


def goes_on(machine: Machine, process: subprocess.Popen[bytes], mend: Callable[[], None]) -> list[str]:
    """Let a broken run end, mend what was broken, and go on as a person would; the commands that were needed.

    `run` is for the case that Metaflow's own files were damaged, or that no step had begun; finished stages then come
    from the cache.
    """
    code = process.wait()
    mend()
    used: list[str] = []
    while code != 0:
        command = "resume" if machine.can_resume() and not used else "run"
        if used.count("run") > 0:
            raise RuntimeError(f"neither resume nor run goes on; see {machine.log}")
        used.append(command)
        code = machine.start(command).wait()
    return used


Tried = tuple[dict[str, Any], list[str]]  # the result, and the commands that it took after the fault


class Campaign:
    """All tries of all faults."""

    def __init__(self, folder: Path, seconds: float, expected: dict[str, Any]) -> None:
        self.folder, self.seconds, self.expected = folder, seconds, expected
        self.outcomes: dict[str, Outcome] = {}

    def attempt(self, fault: str, number: int, draw: random.Random) -> None:
        """One try of one fault."""
        home = self.folder / f"{fault}-{number}"
        started = time.monotonic()
        after_s = draw.uniform(0.1, 0.7) * self.seconds
        found, used = getattr(self, fault)(home, after_s, draw)
        outcome = self.outcomes.setdefault(fault, Outcome())
        equal = found == self.expected
        text = home.with_suffix(".log").read_text(errors="replace").lower()
        outcome.times += 1
        outcome.stopped += bool(used)
        outcome.clear += bool(used) and _CLEAR.get(fault, "\0") in text
        outcome.different += not equal
        outcome.seconds.append(time.monotonic() - started)
        outcome.commands += used
        say(
            f"{fault} {number}: {'equal' if equal else 'DIFFERENT'}; went on by {' and '.join(used) or 'itself'}"
        )

    def disk_full(self, home: Path, after_s: float, _: random.Random) -> Tried:
        """Fill the disk that holds everything."""
        config = home.with_suffix(".toml")
        write_config(config, None)
        machine = Machine(home, config, {})
        with mounted(home, _ROOM):
            process = machine.start("run")
            time.sleep(after_s)
            say(f"disk full after {after_s:.0f} s")
            filler = fill(home)
            used = goes_on(machine, process, filler.unlink)
            return machine.result(), used

    def read_only(self, home: Path, after_s: float, _: random.Random) -> Tried:
        """Make the store's file system read-only."""
        config = home.with_suffix(".toml")
        with mounted(home.with_name(f"{home.name}-store"), _ROOM) as store:
            write_config(config, str(store / "store"))
            machine = Machine(home, config, {})
            process = machine.start("run")
            time.sleep(after_s)
            set_writable(store, writable=False)
            say(f"store read-only after {after_s:.0f} s")
            used = goes_on(machine, process, lambda: set_writable(store, writable=True))
            return machine.result(), used

    def temporary_full(self, home: Path, _: float, __: random.Random) -> Tried:
        """No room for temporary files."""
        config = home.with_suffix(".toml")
        write_config(config, None)
        machine = Machine(home, config, {}, through=["unshare", "--mount", "sh", "-c", _FULL_TMP, "sh"])
        used = goes_on(machine, machine.start("run"), lambda: None)
        return machine.result(), used

    def clock_jumps(self, home: Path, _: float, draw: random.Random) -> Tried:
        """Another wall clock every few seconds; the monotonic clock is left alone, as a real jump leaves it."""
        config, library, offset = (home.with_suffix(suffix) for suffix in (".toml", ".so", ".offset"))
        write_config(config, None)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(_WALL_CLOCK)], check=True)
        offset.write_bytes(bytes(8))
        machine = Machine(home, config, {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(offset)})
        over = threading.Event()

        def jump() -> None:
            with offset.open("r+b", buffering=0) as file:
                while not over.wait(draw.uniform(1.0, 10.0)):
                    file.seek(0)
                    file.write(struct.pack("=q", round(draw.uniform(-2.0, 2.0) * _DAY_S)))

        thread = threading.Thread(target=jump, daemon=True)
        thread.start()
        try:
            used = goes_on(machine, machine.start("run"), lambda: None)
        finally:
            over.set()
            thread.join()
        return machine.result(), used


def can_be_made(fault: str) -> bool:
    """Whether this machine can make the fault."""
    programs = {"clock_jumps": "cc", "temporary_full": "unshare"}
    is_allowed = fault == "clock_jumps" or os.geteuid() == 0
    return is_allowed and shutil.which(programs.get(fault, "mount")) is not None


def rows_of(fault: str, outcome: Outcome) -> list[Metric]:
    """What is published of one fault."""
    times = outcome.times
    ways = ", ".join(f"{each} {outcome.commands.count(each)}" for each in sorted(set(outcome.commands)))
    note = f"gone on by: {ways}" if ways else "the run came through by itself"
    return [
        Metric(f"{fault}.times", times, "runs", times, times, times, note),
        Metric(f"{fault}.different", outcome.different, "runs", times, outcome.different, outcome.different),
        Metric(f"{fault}.stopped", outcome.stopped, "runs", times, outcome.stopped, outcome.stopped),
        Metric(
            f"{fault}.clear_error", outcome.clear, "runs", times, outcome.clear, outcome.clear,
            "of those that stopped",
        ),
    ]  # fmt: skip


def main() -> int:
    """Run the campaign and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("disk_full", "read_only", "temporary_full", "clock_jumps")
    parser.add_argument("--times", type=int, default=2, help="tries of each fault")
    parser.add_argument("--faults", nargs="+", choices=names, default=names)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    possible = [fault for fault in options.faults if can_be_made(fault)]
    for fault in sorted(set(options.faults) - set(possible)):
        say(f"{fault} cannot be made on this machine")
    work = ROOT / ".snapfusion"  # not in /tmp, which is one of the victims
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="faults-") as name:
        folder = Path(name).resolve()
        campaign = Campaign(folder, *uninterrupted(folder / "reference"))
        for number in range(options.times):
            for fault in possible:
                draw = random.Random(f"{options.seed}/{fault}/{number}")  # noqa: S311
                campaign.attempt(fault, number, draw)
                rows = [row for each in campaign.outcomes.items() for row in rows_of(*each)]
                document = result(rows, module="benchmarks.machine_faults", seed=options.seed)
                publish(document, options.json)
    return 1 if any(outcome.different for outcome in campaign.outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
