"""Holds the plan of `snapfusion plan` for this machine against what the stages of a finished run took here.

    python -m benchmarks.plan_check --run 1795671451729204 --store .snapfusion/store --json benchmarks/results/plan_check.json
    python -m benchmarks.plan_check --times benchmarks/results/flow_default.json        # of the default, by an older run

The machine is measured for the plan now: nothing else may run. Stages that the run took from the cache are left out, and so are
those that a plan leaves out. An error is told / taken - 1; `plan.default_error` is the worst one without its sign.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.report import RunReport
from benchmarks.published import ROOT, Metric, publish, result
from flows.planning import planned
from flows.presets import DEFAULT_PRESET, read_source
from steps.store import LocalStore

_PREFIX = "flow.stage_seconds."


def taken(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by stage; the tasks of one stage together, as a plan tells them."""
    found: dict[str, float] = defaultdict(float)
    for name, seconds in rows:
        found[name.partition(" ")[0]] += seconds
    return dict(found)


def errors(told: Mapping[str, float], measured: Mapping[str, float]) -> list[Metric]:
    """One metric a stage that both have, and the worst of them."""
    both = [stage for stage in told if stage in measured]
    found = {stage: told[stage] / measured[stage] - 1.0 for stage in both}
    rows = [
        _one(f"plan.error.{stage}", error, f"told {told[stage]:.0f} s, took {measured[stage]:.0f} s")
        for stage, error in found.items()
    ]
    worst = max(found, key=lambda stage: abs(found[stage]))
    whole = sum(told[stage] for stage in both) / sum(measured[stage] for stage in both) - 1.0
    return [
        *rows,
        _one("plan.error.sum", whole, "of all these stages"),
        _one("plan.default_error", abs(found[worst]), f"{worst}, the worst stage"),
    ]


def _one(name: str, value: float, note: str) -> Metric:
    return Metric(name, value, "", n=1, low=value, high=value, note=note)


def _run(options: argparse.Namespace) -> tuple[SnapFusionConfig, dict[str, float]]:
    """Configuration and seconds by stage of what was named. Ends the program without it."""
    if options.times:
        rows = json.loads(options.times.read_text())["metrics"]
        times = [
            (row["name"].removeprefix(_PREFIX), row["value"])
            for row in rows
            if row["name"].startswith(_PREFIX)
        ]
        return parse_config(read_source(DEFAULT_PRESET)), taken(times)
    text = LocalStore(options.store).get_document(f"reports/{options.run}")
    if text is None:
        raise SystemExit(f"run {options.run} has no report in the store {options.store}")
    report = RunReport.from_json(text)
    cached = {row.stage.partition(" ")[0] for row in report.stages if row.cached}
    found = taken((row.stage, row.wall_time_s) for row in report.stages)
    return parse_config(report.config), {
        stage: seconds for stage, seconds in found.items() if stage not in cached
    }


def main() -> int:
    """Read, plan, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="run id")
    which.add_argument("--times", type=Path, help="what benchmarks.flow_run has published")
    parser.add_argument("--store", type=Path, default=ROOT / ".snapfusion/store", help="of --run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config, measured = _run(options)
    told = {item.stage: item.seconds for item in planned(config, None).stages}
    publish(result(errors(told, measured), module="benchmarks.plan_check", seed=0), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
