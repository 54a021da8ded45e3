"""What the tests take: seconds of `make test` (run it on an idle machine), how many there are, and with --coverage branches.

python -m benchmarks.test_suite --json benchmarks/results/test_suite.json
python -m benchmarks.test_suite --coverage --json benchmarks/results/coverage.json    # slower; its seconds are no measure
"""

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

from benchmarks.published import ROOT, Metric, publish, result

_COVERAGE = ROOT / ".snapfusion/coverage/coverage.json"
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|error)")


def outcomes(output: str) -> dict[str, int]:
    """How many tests passed, failed and so on, from pytest's last line. Raises ValueError without one."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ passed", line)]
    if not lines:
        raise ValueError("pytest's summary is missing: the tests did not run to their end")
    return {name: int(count) for count, name in _SUMMARY.findall(lines[-1])}


def main() -> int:
    """Run, count, publish; pytest's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coverage", action="store_true", help="branches of steps/ and artifacts_schema/")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    done = subprocess.run(
        ["make", "coverage" if options.coverage else "test"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds, found = time.monotonic() - started, outcomes(done.stdout)
    note = ", ".join(f"{count} {name}" for name, count in found.items())
    if options.coverage:
        share = json.loads(_COVERAGE.read_text())["totals"]["percent_branches_covered"]
        rows = [
            Metric(
                "tests.branch_coverage",
                share,
                "%",
                1,
                share,
                share,
                f"{note}; flows run as processes do not count",
            )
        ]
    else:
        rows = [Metric("tests.seconds", seconds, "s", 1, seconds, seconds, f"make test: {note}")]
    publish(result(rows, module="benchmarks.test_suite", seed=0), options.json)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
