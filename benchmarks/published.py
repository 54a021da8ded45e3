"""The JSON that a benchmark publishes: what was measured, by which command, on which commit and machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Metric:
    """One number with its 95 % interval (or its spread, if `note` says so) and the number of samples behind
    it.
    """

    name: str
    value: float
    unit: str
    n: int
    low: float
    high: float
    note: str = ""


def result(metrics: Sequence[Metric], *, module: str, seed: int) -> dict[str, object]:
    """The document of one benchmark run. `module` is what `python -m` was given."""
    cores = len(os.sched_getaffinity(0))
    return {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "commit": _commit(),
        "machine": f"{_processor()}, {cores} cores, {platform.system()}; one thread: {_speed():.0f} GFLOP/s",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "metrics": [asdict(metric) for metric in metrics],
    }


def publish(document: dict[str, object], path: Path | None) -> None:
    """Print the document, and write it to `path` if there is one."""
    text = json.dumps(document, indent=2)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def _commit() -> str:
    """The checked-out commit, marked when the working tree differs from it."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changes else commit


def _speed() -> float:
    """Float32 matrix product on one thread, GFLOP/s, median of nine.

    The same kind of rented machine was twice as slow on one day as on another; times are compared with this beside them.
    """
    import torch

    side, threads, seconds = 1024, torch.get_num_threads(), []
    matrix = torch.ones(side, side)
    torch.set_num_threads(1)
    for _ in range(9):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return 2e-9 * side**3 / statistics.median(seconds)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
