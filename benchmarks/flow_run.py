"""Times a whole run of the flow: wall time, peak memory, and the share of time outside the stage functions.

    python -m benchmarks.flow_run --name default --json benchmarks/results/flow_default.json -- make run
    python -m benchmarks.flow_run --name cached --json benchmarks/results/flow_cached.json -- make run

Start the first with an empty store. Outside the stage functions means that no task's stage function runs. Memory is the
resident memory of the command and all it starts, sampled twice a second; pages that processes share are counted in each.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from artifacts_schema.config import parse_config
from benchmarks.published import Metric, publish, result
from flows.environment import WORK_ROOT
from steps.store import open_store

_SAMPLE_S = 0.5


def watch(command: list[str]) -> tuple[int, float, int]:
    """Exit status, wall time (s) and peak resident memory (bytes) of a command and all its descendants."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(_SAMPLE_S)
    return process.returncode, time.monotonic() - started, peak


def resident(pid: int) -> int:
    """Resident bytes of a process and its descendants; those that end meanwhile count nothing."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total


def newest_report() -> dict[str, Any]:
    """report.json of the run that finished last."""
    runs = list((WORK_ROOT / ".snapfusion" / "runs").glob("*/report.json"))
    found: dict[str, Any] = json.loads(max(runs, key=lambda path: path.stat().st_mtime).read_text())
    return found


def stage_intervals(report: dict[str, Any]) -> list[tuple[float, float]]:
    """Start and end (s since the epoch, to the second) of every stage function of a run."""
    store = open_store(parse_config(report["config"]).store, WORK_ROOT)
    found = []
    for identity in report["inputs"].values():
        origin = json.loads(store.get_document(f"records/{identity}") or "{}")["provenance"]
        if origin is None:  # the bundle's manifest, which is the same whenever and wherever it was made
            continue
        end = datetime.fromisoformat(origin["created_at"]).timestamp()
        found.append((end - origin["wall_time_s"], end))
    return found


def covered_seconds(intervals: list[tuple[float, float]]) -> float:
    """Seconds in which at least one interval runs; tasks side by side count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def metrics(name: str, seconds: float, peak: int, report: dict[str, Any]) -> list[Metric]:
    """The published names; the orchestration share only means something where the stages really ran."""
    rows = [_one(f"flow.{name}_seconds", seconds, "s"), _one(f"flow.{name}_peak_gib", peak / 2**30, "GiB")]
    if name != "cached":
        busy = covered_seconds(stage_intervals(report))
        rows.append(_one("flow.orchestration_share", 1.0 - busy / seconds, ""))
        rows += [_one(f"flow.stage_seconds.{s['stage']}", s["wall_time_s"], "s") for s in report["stages"]]
    return rows


def _one(name: str, value: float, unit: str) -> Metric:
    return Metric(name, value, unit, n=1, low=value, high=value, note="one run, no spread")


def main() -> int:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", choices=("default", "smoke", "cached"), default="default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    status, seconds, peak = watch(arguments.command)
    if status != 0:
        print(f"the command ended with status {status}", file=sys.stderr)
        return status
    rows = metrics(arguments.name, seconds, peak, newest_report())
    publish(result(rows, module="benchmarks.flow_run", seed=0), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
