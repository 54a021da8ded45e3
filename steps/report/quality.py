"""The report's part on quality: every variant's distances and scores, and the paired differences."""

from collections.abc import Sequence

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from steps.evaluation.compare import UNDECIDED
from steps.report import charts
from steps.report.content import Block, Chart, Table, Text


def quality(evaluations: Sequence[EvaluationRecord], comparisons: Sequence[VariantComparison]) -> list[Block]:
    """The blocks, in reading order; none without an evaluation."""
    if not evaluations:
        return []
    first = evaluations[0]
    return [
        Text(
            f"## Quality\n\n{first.pictures} pictures per variant and guidance scale from the "
            f"{first.protocol['split']} split; distances over {first.protocol['features']} features. Brackets are 95 % "
            f"intervals. Where the interval of a paired difference includes zero the verdict is “{UNDECIDED}”. "
            "The Fréchet distance is biased at this n; compare it with the last row."
        ),
        _variants(evaluations),
        _differences(evaluations, comparisons),
        Chart(charts.distance_over_clip(evaluations), "Kernel distance over CLIP score with 95 % intervals."),
    ]


def _variants(evaluations: Sequence[EvaluationRecord]) -> Table:
    real = evaluations[0].real
    measured = [(e.title, f"{p.guidance_scale:g}", p) for e in evaluations for p in e.points]
    rows = tuple(
        (
            title,
            scale,
            _interval(found.kernel_distance),
            f"{found.frechet_distance:.3f}",
            _interval(found.clip_score),
            _interval(found.retrieval_top1, percent=True),
        )
        for title, scale, found in (*measured, ("real pictures (against train)", "-", real))
    )
    scores = ("kernel distance", "Fréchet distance", "CLIP score", f"top-1 of {real.retrieval_candidates}")
    return Table(("variant", "guidance", *scores), rows)


def _differences(evaluations: Sequence[EvaluationRecord], comparisons: Sequence[VariantComparison]) -> Table:
    titles = {item.variant: item.title for item in evaluations}
    rows = tuple(
        (
            f"{titles.get(c.other, c.other)} against {titles.get(c.reference, c.reference)}",
            f"{c.guidance_scale:g}",
            f"{_interval(c.distance_difference, signed=True)}: {c.distance_verdict}",
            f"{_interval(c.clip_difference, signed=True)}: {c.clip_verdict}",
        )
        for c in comparisons
    )
    return Table(("paired difference", "guidance", "kernel distance", "CLIP score"), rows)


def _interval(value: Interval, *, percent: bool = False, signed: bool = False) -> str:
    sign = "+" if signed else ""
    style = f"{sign}.0%" if percent else f"{sign}.4f"
    return f"{value.value:{style}} [{value.low:{style}}, {value.high:{style}}]"
