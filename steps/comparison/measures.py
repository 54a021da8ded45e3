"""What is compared of runs, and what to conclude: better, worse or undecided, with the reason in one sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from artifacts_schema.licences import licence_of
from steps.comparison.frame import cost_of, seconds_of
from steps.comparison.runs import Run
from steps.evaluation.compare import UNDECIDED, compare
from steps.store.base import Store

Outcome = Literal["better", "worse", "undecided", "same", "not comparable"]
_TOLERANCE = 0.005  # a size or latency within half a percent is the same


@dataclass(frozen=True)
class Criterion:
    """One verdict box: a number of the compared run, its change against the reference, and what that means."""

    name: str
    value: str
    change: str
    outcome: Outcome
    note: str = ""
    unlicensed: bool = False  # decided by the numbers, but not by an instrument that may


@dataclass(frozen=True)
class Metric:
    """One row of the table: a number of each run, None where a run lacks it; `interval` where it has one."""

    name: str
    values: tuple[Interval | float | None, ...]
    higher_is_better: bool
    style: str = ".4g"

    def best(self) -> tuple[int, ...]:
        """The runs with the best value; none where all that know theirs have the same, or one alone knows it."""
        numbers = [value.value if isinstance(value, Interval) else value for value in self.values]
        known = [number for number in numbers if number is not None]
        if len(set(known)) < 2:
            return ()
        best = max(known) if self.higher_is_better else min(known)
        return tuple(place for place, number in enumerate(numbers) if number == best)


@dataclass(frozen=True)
class Pair:
    """One run against another: paired differences of quality, the boxes, and the verdict on everything."""

    reference: Run
    other: Run
    quality: VariantComparison
    criteria: tuple[Criterion, ...]
    outcome: Outcome
    sentence: str


def compare_pair(store: Store, reference: Run, other: Run, subject: str) -> Pair:
    """Compare one variant of two runs. Raises EvaluationError for unlike protocols."""
    found = compare(store, reference.evaluations[subject], other.evaluations[subject])
    point = other.evaluations[subject].point
    criteria = (
        _quality("distance", point.kernel_distance, found.distance_difference, found.distance_verdict, other),
        _quality("CLIP", point.clip_score, found.clip_difference, found.clip_verdict, other),
        _latency(reference, other),
        _amount("size", reference.size_mib, other.size_mib, "{:.2f} MiB"),
        _cost(reference, other),
    )
    outcome = _overall(criteria)
    return Pair(reference, other, found, criteria, outcome, _sentence(reference, other, criteria, outcome))


def metrics(runs: Sequence[Run], subject: str) -> list[Metric]:
    """The rows of the table: quality first, then what it costs to run."""
    rows = [
        Metric("kernel distance", _points(runs, subject, lambda e: e.point.kernel_distance), False, ".4f"),
        Metric("CLIP score", _points(runs, subject, lambda e: e.point.clip_score), True, ".4f"),
        Metric(
            "own caption found (top-1)", _points(runs, subject, lambda e: e.point.retrieval_top1), True, ".0%"
        ),
        Metric(
            "Fréchet distance", tuple(run.evaluations[subject].point.frechet_distance for run in runs), False
        ),
        *(
            Metric(title, tuple(_quality_of(run, name) for run in runs), better, style)
            for name, title, better, style in _PUBLISHED
        ),
        *(
            Metric(title, tuple(run.report.headline.get(name) for run in runs), better, style)
            for name, title, better, style in _HEADLINE
        ),
        Metric("UNet parameters, M", _parameters(runs), False, ".2f"),
        Metric("size of the bundle, MiB", tuple(run.size_mib or None for run in runs), False, ".2f"),
    ]
    return [row for row in rows if any(value is not None for value in row.values)]


# Name in the report, for people, whether higher is better, how it is written.
_PUBLISHED = (
    ("student8_vs_base50.distance_ratio", "distance, times its own base's at 50 steps", False, ".3f"),
    ("student8_vs_base50.clip_difference", "CLIP score minus its own base's at 50 steps", True, "+.4f"),
)
_HEADLINE = (
    ("unet.predicted_latency_ratio", "guided step, base's over its own", True, ".2f"),
    ("decoder.psnr_db", "small decoder's pictures, dB", True, ".1f"),
    ("coreml.bundle.image_psnr_db", "bundle's pictures against torch's, dB", True, ".1f"),
)


def _points(
    runs: Sequence[Run], subject: str, take: Callable[[EvaluationRecord], Interval]
) -> tuple[Interval, ...]:
    return tuple(take(run.evaluations[subject]) for run in runs)


def _quality_of(run: Run, name: str) -> Interval | None:
    return run.report.quality.get(name)


def _parameters(runs: Sequence[Run]) -> tuple[float | None, ...]:
    return tuple(run.evolution.parameters / 1e6 if run.evolution else None for run in runs)


def _quality(name: str, value: Interval, difference: Interval, verdict: str, run: Run) -> Criterion:
    change = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    shown = f"{value.value:.4f}"
    if difference.low == difference.high == 0.0:
        return Criterion(name, shown, "the same pictures", "same")
    if verdict == UNDECIDED:
        return Criterion(
            name, shown, change, "undecided", f"the interval includes 0 at {difference.n} pictures"
        )
    metric = {"distance": "distance_difference", "CLIP": "clip_difference"}[name]
    licence = licence_of(run.report.licences, metric)
    note = f"looks {verdict}, but the instrument has no licence: {licence.reason}" if licence else ""
    if licence is not None and not licence.licensed:
        return Criterion(name, shown, change, "undecided", note, unlicensed=True)
    return Criterion(name, shown, change, "better" if verdict == "better" else "worse")


def _latency(reference: Run, other: Run) -> Criterion:
    before, now = reference.evolution, other.evolution
    if before is None or now is None:
        return Criterion(
            "step latency", "not known", "-", "not comparable", "a run's evolution left no record"
        )
    share = f"{now.predicted_ratio:.0%} of its base's"
    if before.latency_table == now.latency_table:
        shown = f"{_engineering(now.predicted_latency)} {now.latency_unit}"
        found = _amount("step latency", before.predicted_latency, now.predicted_latency, "{}")
        return Criterion("step latency", shown, found.change, found.outcome, share)
    found = _amount("step latency", before.predicted_ratio, now.predicted_ratio, "{:.0%} of the base's")
    return Criterion(
        found.name, found.value, found.change, found.outcome, "tables differ: shares of the base's step"
    )


def _cost(reference: Run, other: Run) -> Criterion:
    """All stages as if none had come from a cache: what the result costs to make. Says nothing about how good it is."""
    minutes, own = (seconds_of(other.report, own=mine) / 60 for mine in (False, True))
    found = _amount("cost", seconds_of(reference.report) / 60, minutes, "{:.1f} min")
    price = cost_of(other.report)
    note = f"{f'price {price:.3g}; ' if price else ''}without a cache; this run itself {own:.1f} min"
    return Criterion("cost", found.value, found.change, found.outcome, note)


def _amount(name: str, before: float, now: float, style: str) -> Criterion:
    """Less is better. Not comparable where one run does not know its number."""
    shown = style.format(now)
    if not before or not now:
        return Criterion(name, shown if now else "not known", "-", "not comparable")
    change = now / before - 1.0
    if abs(change) <= _TOLERANCE:
        return Criterion(name, shown, "the same", "same")
    return Criterion(name, shown, f"{change:+.1%}", "worse" if change > 0 else "better")


def _overall(criteria: Sequence[Criterion]) -> Outcome:
    """Quality decides; where it is the same, latency and size do. What points both ways, or is unsure, is undecided.

    The cost of making it depends on the machine and on who else works there: it is shown and decides nothing.
    """
    distance, clip, latency, size, _ = (item.outcome for item in criteria)
    quality, running = {distance, clip}, {latency, size}
    found = quality | running
    if "better" in found and "worse" in found:
        return "undecided"
    if quality == {"undecided"} or ("undecided" in quality and not quality & {"better", "worse"}):
        return "undecided"
    if "better" in found:
        return "better"
    return "worse" if "worse" in found else "same"


def _sentence(reference: Run, other: Run, criteria: Sequence[Criterion], outcome: Outcome) -> str:
    words = {
        "better": "is better than",
        "worse": "is worse than",
        "same": "is as good, as fast and as large as",
        "undecided": "is neither shown to be better nor worse than",
        "not comparable": "cannot be compared with",
    }[outcome]
    parts = []
    for kind in ("better", "worse", "undecided", "same"):
        names = [item.name for item in criteria[:4] if item.outcome == kind and not item.unlicensed]
        if names and outcome != "same":
            parts.append(f"{_and(names)} {'is' if len(names) == 1 else 'are'} {_STATES[kind]}")
    for kind in ("worse", "better"):
        names = [item.name for item in criteria if item.unlicensed and item.note.startswith(f"looks {kind}")]
        if names:
            looks = "looks" if len(names) == 1 else "look"
            parts.insert(0, f"{_and(names)} {looks} {kind}, by an instrument without licence")
    smoke = " Smoke: no number here means anything." if reference.report.smoke or other.report.smoke else ""
    reason = f": {'; '.join(parts)}" if parts else ""
    return f"{other.title} {words} {reference.title}{reason}.{smoke}"


_STATES = {"better": "better", "worse": "worse", "undecided": "undecided", "same": "the same"}


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _engineering(value: float) -> str:
    """1.23 G and the like: MACs are many."""
    for factor, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor * 10:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"
