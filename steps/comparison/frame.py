"""Finished runs as rows of a table: configuration, headline with intervals, cost."""

from typing import Any

from artifacts_schema.report import RunReport, StageSummary
from steps.comparison.references import run_id_of
from steps.report.trace import flat


def seconds_of(report: RunReport, *, own: bool = False) -> float:
    """What the stages took when they were made, whichever run made them; with `own`, those that this run made itself."""
    return sum(stage.wall_time_s for stage in _stages(report, own))


def cost_of(report: RunReport, *, own: bool = False) -> float:
    """The price of that time by `compute.prices` and `compute.price_per_hour` of the run; 0 where none is configured."""
    compute = report.config.get("compute", {})
    usual, prices = compute.get("price_per_hour", 0.0), compute.get("prices", {})
    return sum(
        stage.wall_time_s / 3600 * float(prices.get(stage.stage.split(" ")[0], usual))
        for stage in _stages(report, own)
    )


def _stages(report: RunReport, own: bool) -> list[StageSummary]:
    return [stage for stage in report.stages if not (own and stage.cached)]


def row_of(report: RunReport) -> dict[str, Any]:
    """One flat row: `run`, `name`, `finished`, `smoke`, `commit`, the headline under its published names with `.low` and
    `.high` where it has an interval, `minutes`, `own_minutes`, `peak_mib`, `cost`, and `config.<key>`.
    """
    origin = report.provenance
    row: dict[str, Any] = {
        "run": run_id_of(report),
        "name": report.name,
        "finished": origin.created_at if origin else None,
        "smoke": report.smoke,
        "commit": report.code.commit if report.code else "",
        "minutes": seconds_of(report) / 60,
        "own_minutes": seconds_of(report, own=True) / 60,
        "peak_mib": max((stage.peak_memory_bytes for stage in report.stages), default=0) / (1 << 20),
        "cost": cost_of(report, own=True),
    }
    for name, value in report.headline.items():
        row[name] = value
        if (interval := report.quality.get(name)) is not None:
            row |= {f"{name}.low": interval.low, f"{name}.high": interval.high}
    return row | {f"config.{name}": value for name, value in flat(report.config)}


def headline_of(report: RunReport) -> dict[str, list[float | None]]:
    """The headline as small as it gets: name to [value, low, high], the last two None without an interval."""
    found: dict[str, list[float | None]] = {}
    for name, value in report.headline.items():
        interval = report.quality.get(name)
        numbers = (value, interval.low, interval.high) if interval else (value, None, None)
        found[name] = [number if number is None else float(f"{number:.6g}") for number in numbers]
    return found
