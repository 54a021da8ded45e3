"""The comparison as a page: the verdict first, then why, then the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts_schema.base import Interval
from steps.comparison import charts
from steps.comparison.architectures import architectures
from steps.comparison.frame import cost_of, seconds_of
from steps.comparison.measures import Criterion, Metric, Pair, compare_pair, metrics
from steps.comparison.pictures import CaptionRow, caption_rows, common_base
from steps.comparison.reasons import config_differences, first_difference
from steps.comparison.runs import Run, check_alike, subject_of, titled
from steps.evaluation.compare import UNDECIDED
from steps.files.errors import SnapFusionError
from steps.report.content import (
    Block,
    Box,
    Cell,
    Chart,
    Folded,
    Gallery,
    Grid,
    Heading,
    Text,
    Tone,
    Verdict,
)
from steps.store.base import Store

MOST_RUNS = 6  # columns of pictures that a card has room for
_PICTURES_SHOWN = 4
_MIB = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """Runs, the variant that is compared, and which run is held against which."""

    runs: tuple[Run, ...]
    subject: str
    pairs: tuple[Pair, ...]


def compare_runs(
    store: Store, runs: Sequence[Run], pairs: Sequence[tuple[int, int]] | None = None
) -> Comparison:
    """Compare runs; without `pairs` (reference, other) every run with the first.

    Raises SnapFusionError for fewer than two runs or too many, EvaluationError for unlike protocols.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise SnapFusionError(
            f"a comparison needs 2 to {MOST_RUNS} different runs, found {len(runs)}"
            + (f" ({', '.join(run.id for run in runs)})" if runs else "")
        )
    runs = titled(runs)
    subject = subject_of(runs)
    check_alike(runs, subject)
    wanted = pairs or [(0, place) for place in range(1, len(runs))]
    found = tuple(compare_pair(store, runs[first], runs[second], subject) for first, second in wanted)
    return Comparison(tuple(runs), subject, found)


def comparison_page(store: Store, found: Comparison) -> list[Block]:
    """All blocks, in reading order."""
    runs, subject = found.runs, found.subject
    title = runs[0].evaluations[subject].title
    return [
        *(block for pair in found.pairs for block in _verdict(pair)),
        *why(store, found),
        Heading("Metrics", sub=True),
        Text(
            f"Of “{title}”, {runs[0].evaluations[subject].pictures} pictures a run, the same captions and noise. Brackets are "
            "95 % intervals; below them stands the paired difference. The best is bold."
        ),
        _metrics(found),
        Chart(
            charts.distance_over_clip(runs, subject),
            "Kernel distance over CLIP score with 95 % intervals; the large marks are what is compared.",
        ),
        *_pictures(store, found),
        *architectures(runs),
        *_curves(runs),
        *_costs(runs),
    ]


def _verdict(pair: Pair) -> list[Block]:
    boxes = tuple(Box(c.name, c.value, c.change, _tone(c), c.note) for c in pair.criteria)
    tone: Tone = "undecided" if pair.outcome == "not comparable" else pair.outcome
    return [Verdict(tone, pair.sentence, boxes)]


def _tone(criterion: Criterion) -> Tone:
    return "undecided" if criterion.outcome == "not comparable" else criterion.outcome


def why(store: Store, found: Comparison) -> list[Block]:
    """Configuration keys that differ, and the first stage that does."""
    runs = found.runs
    about = [
        ("run", [run.id for run in runs]),
        ("finished", [_finished(run) for run in runs]),
        ("labels", [_labels(run) for run in runs]),
    ]
    differing = config_differences([run.report for run in runs])
    rows = [*about, *((key, list(values)) for key, values in differing.items())]
    cells = tuple((Cell(name), *map(Cell, values)) for name, values in rows)
    blocks: list[Block] = [
        Heading("Why they differ", sub=True),
        Grid(("", *(run.title for run in runs)), cells),
    ]
    if not differing:
        blocks.append(Text("The configurations are the same."))
    for pair in found.pairs:
        first = first_difference(store, pair.reference.report, pair.other.report)
        names = f"{pair.other.title} and {pair.reference.title}"
        if first is None:
            blocks.append(Text(f"{names} share every stage: they are one result."))
            continue
        reason = f" ({'; '.join(first.why)})" if first.why else ""
        shared = f" Shared: {', '.join(first.shared)}." if first.shared else " They share no stage."
        blocks.append(Text(f"{names} part at {first.stage}{reason}.{shared}"))
    return blocks


def _finished(run: Run) -> str:
    origin = run.report.provenance
    return origin.created_at.replace("T", " ")[:16] if origin else "not known"


def _labels(run: Run) -> str:
    """The labels up to what each says in detail: "smoke"."""
    return ", ".join(dict.fromkeys(label.partition(":")[0] for label in run.report.labels)) or "-"


def metric_cells(metric: Metric, found: Comparison) -> list[tuple[str, str, bool, Tone]]:
    """For each run: the value with its interval, the paired difference, whether it is the best, and the difference's tone."""
    best = metric.best()
    cells = []
    for place, (run, value) in enumerate(zip(found.runs, metric.values, strict=True)):
        small, tone = _paired(metric, run, found)
        cells.append((_written(value, metric.style), small, place in best, tone))
    return cells


def _metrics(found: Comparison) -> Grid:
    rows = tuple(
        (
            Cell(metric.name, "higher is better" if metric.higher_is_better else "lower is better"),
            *(Cell(*cell) for cell in metric_cells(metric, found)),
        )
        for metric in metrics(found.runs, found.subject)
    )
    return Grid(("", *(run.title for run in found.runs)), rows)


def _paired(metric: Metric, run: Run, found: Comparison) -> tuple[str, Tone]:
    """The paired difference of a run against the (last) run that it is held against; only distance and CLIP have one."""
    of_run = [pair for pair in found.pairs if pair.other is run]
    takes = {"kernel distance": "distance", "CLIP score": "clip"}
    if not of_run or metric.name not in takes:
        return "", "same"
    texts, tone = [], "same"
    for pair in of_run:
        kind = takes[metric.name]
        difference: Interval = getattr(pair.quality, f"{kind}_difference")
        verdict: str = getattr(pair.quality, f"{kind}_verdict")
        same = difference.low == difference.high == 0.0
        word = "the same pictures" if same else verdict
        texts.append(f"{_written(difference, '+.4f')} against {pair.reference.title}: {word}")
        tone = "same" if same else "undecided" if verdict == UNDECIDED else verdict
    return "; ".join(texts), tone  # type: ignore[return-value]


def _written(value: Interval | float | None, style: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, Interval):
        return f"{value.value:{style}} [{value.low:{style}}, {value.high:{style}}]"
    return f"{value:{style}}"


def _pictures(store: Store, found: Comparison) -> list[Block]:
    runs, rows = found.runs, caption_rows(store, found.runs, found.subject)
    base = common_base(runs) if found.subject != "base_50" else None
    columns = ("real", *([base.title] if base else []), *(run.title for run in runs))
    blocks: list[Block] = [
        Heading("Pictures", sub=True),
        Text(
            "Below each picture stands its CLIP score. What changed most between the runs, by that score, comes first."
        ),
        _gallery(columns, rows[:_PICTURES_SHOWN]),
    ]
    if rest := rows[_PICTURES_SHOWN:]:
        blocks.append(Folded(f"{len(rest)} more captions", (_gallery(columns, rest),)))
    return blocks


def _gallery(columns: tuple[str, ...], rows: Sequence[CaptionRow]) -> Gallery:
    shown = tuple(
        (
            row.caption,
            (
                (row.real, ""),
                *((data, f"{score:.3f}") for data, score in zip(row.pictures, row.scores, strict=True)),
            ),
        )
        for row in rows
    )
    return Gallery(columns, shown)


def _curves(runs: Sequence[Run]) -> list[Block]:
    chart = charts.curves(runs)
    if chart is None:
        return []
    return [
        Heading("Training", sub=True),
        Chart(
            chart,
            "Optimised loss of the stages that not all runs share; those that share one have the same curve.",
        ),
    ]


def _costs(runs: Sequence[Run]) -> list[Block]:
    reports = [run.report for run in runs]
    rows = [
        (
            "all stages, if none came from the cache",
            [f"{seconds_of(report) / 60:.1f} min" for report in reports],
        ),
        (
            "what the run itself worked",
            [f"{seconds_of(report, own=True) / 60:.1f} min" for report in reports],
        ),
        ("most memory of a stage", [f"{run.peak_memory_bytes / _MIB:,.0f} MiB" for run in runs]),
    ]
    if any(map(cost_of, reports)):
        rows.append(("price of all stages", [f"{cost_of(report):.3g}" for report in reports]))
        rows.append(("price of its own work", [f"{cost_of(report, own=True):.3g}" for report in reports]))
    grid = Grid(
        ("", *(run.title for run in runs)), tuple((Cell(name), *map(Cell, cells)) for name, cells in rows)
    )
    return [Heading("Time, memory, cost", sub=True), grid, Folded("By stage", (_stage_grid(runs),))]


def _stage_grid(runs: Sequence[Run]) -> Grid:
    found = [{row.stage: row for row in run.report.stages} for run in runs]
    names = dict.fromkeys(name for rows in found for name in rows)
    cells = []
    for name in names:
        row = [Cell(name)]
        for rows in found:
            stage = rows.get(name)
            origin = "" if stage is None else "from the cache" if stage.cached else "made here"
            text = f"{stage.wall_time_s:.1f} s, {stage.peak_memory_bytes / _MIB:,.0f} MiB" if stage else "-"
            row.append(Cell(text, origin))
        cells.append(tuple(row))
    return Grid(("stage", *(run.title for run in runs)), tuple(cells))
