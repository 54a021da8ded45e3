"""What the stage cache and `resume` save, shown by whole runs of the smoke preset on one local store.

    python -m benchmarks.flow_cache --json benchmarks/results/flow_cache.json

1. Two runs begin at once, in two folders, on one empty store: both must come through and report the same, and no
   stage may be worked on twice.
2. A third run with another learning rate of student_8: which stages run, which come from the cache.
3. The third run's last stage is started again with `resume`: the time before it works.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import Machine, write_config
from benchmarks.published import Metric, publish, result

_STAGE = re.compile(r"\] (?P<stage>[a-z_0-9]+(?: [a-z_0-9]+)?): cache (?P<how>hit|miss)(?P<why>[^(]*)")
_RATE = 1.5e-4


def wait(process: subprocess.Popen[bytes], machine: Machine) -> None:
    """Until a run has come through."""
    if process.wait() != 0:
        raise RuntimeError(f"a run failed; see {machine.log}:\n{machine.log.read_text()[-3000:]}")


def outcome(machine: Machine) -> dict[str, str]:
    """Every stage that asked the cache, and whether it was a hit or a miss."""
    text = machine.log.read_text(errors="replace")
    return {found["stage"]: found["how"] for found in _STAGE.finditer(text)}


def at_once(folder: Path, store: Path) -> tuple[list[Machine], float]:
    """Two runs that begin at the same moment on one empty store."""
    machines = []
    for name in ("first", "second"):
        config = folder / f"{name}.toml"
        write_config(config, str(store))
        machines.append(Machine(folder / name, config, {}))
    started = time.monotonic()
    processes = [machine.start("run") for machine in machines]
    for process, machine in zip(processes, machines, strict=True):
        wait(process, machine)
    return machines, time.monotonic() - started


def changed_rate(folder: Path, store: Path) -> tuple[Machine, float]:
    """A run with another learning rate of student_8."""
    config = folder / "changed.toml"
    write_config(config, str(store))
    text = config.read_text()
    marker = "[student_8.training]\n"
    if text.count(marker) != 1:
        raise RuntimeError(f"expected one {marker.strip()} in the smoke preset")
    config.write_text(text.replace(marker, f"{marker}learning_rate = {_RATE}\n"))
    machine = Machine(folder / "changed", config, {})
    started = time.monotonic()
    wait(machine.start("run"), machine)
    return machine, time.monotonic() - started


def last_stage_again(machine: Machine) -> float:
    """Seconds from `resume` of the last stage until its task says that it works."""
    before = machine.log.stat().st_size
    started = time.monotonic()
    process = machine.start("resume", "report")
    seconds = 0.0
    while process.poll() is None:
        new = machine.log.read_bytes()[before:].decode(errors="replace")
        if not seconds and re.search(r"/report/\d+ \(pid \d+\)\] (?!Task is starting)\S", new):
            seconds = time.monotonic() - started
        time.sleep(0.05)
    wait(process, machine)
    if not seconds:
        raise RuntimeError(f"the report said nothing; see {machine.log}")
    return seconds


def main() -> int:
    """Run all three and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=Path, help="keep what the runs printed here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            rows = measure(folder)
        finally:
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                for log in folder.glob("*.log"):
                    shutil.copy(log, options.logs)
    publish(result(rows, module="benchmarks.flow_cache", seed=0), options.json)
    return int(rows[0].value != 0 or rows[1].value != 0)


def measure(folder: Path) -> list[Metric]:
    """The rows to publish; the first two must be 0."""
    machines, together_s = at_once(folder, folder / "store")
    outcomes = [outcome(machine) for machine in machines]
    twice = sorted(stage for stage, how in outcomes[0].items() if how == "miss" == outcomes[1].get(stage))
    one, two = (json.dumps(machine.result(), sort_keys=True) for machine in machines)
    print(f"two at once: {together_s:.0f} s, {outcomes}", file=sys.stderr, flush=True)
    changed, changed_s = changed_rate(folder, folder / "store")
    found = outcome(changed)
    ran = [stage for stage, how in found.items() if how == "miss"]
    reused = [stage for stage, how in found.items() if how == "hit"]
    print(f"student_8 learning rate {_RATE}: {changed_s:.0f} s, ran {ran}, reused {reused}", file=sys.stderr)
    resume_s = last_stage_again(changed)
    stages = len(outcomes[0])
    misses = [sum(how == "miss" for how in each.values()) for each in outcomes]
    return [
        Metric("two_runs.different", int(one != two), "runs", 2, 0, 0, f"both in {together_s:.0f} s"),
        Metric(
            "two_runs.worked_on_twice", len(twice), "stages", stages, len(twice), len(twice),
            f"{misses[0]} stages worked on by one run, {misses[1]} by the other; {', '.join(twice)}",
        ),
        Metric("changed_rate.ran", len(ran), "stages", len(found), len(ran), len(ran), ", ".join(ran)),
        Metric(
            "changed_rate.reused", len(reused), "stages", len(found), len(reused), len(reused), ", ".join(reused)
        ),
        Metric("changed_rate.seconds", changed_s, "s", 1, changed_s, changed_s, "the whole run"),
        Metric(
            "resume.last_stage_seconds", resume_s, "s", 1, resume_s, resume_s,
            "from `resume report` to the first line that its task prints",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
