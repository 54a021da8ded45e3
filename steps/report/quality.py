"""The report's part on quality: every variant's distances and scores, and the paired differences."""

from collections.abc import Mapping, Sequence

from artifacts_schema.base import Interval
from artifacts_schema.evaluation import EvaluationRecord, GuidanceRecord, VariantComparison
from artifacts_schema.licences import Licence
from steps.evaluation.compare import UNDECIDED
from steps.report import charts
from steps.report.content import Block, Chart, Heading, Table, Text


def quality(
    evaluations: Sequence[EvaluationRecord],
    comparisons: Sequence[VariantComparison],
    guidance: Sequence[GuidanceRecord],
    licences: Mapping[str, Licence],
) -> list[Block]:
    """The blocks, in reading order; none without an evaluation."""
    if not evaluations:
        return []
    first = evaluations[0]
    return [
        Heading("Quality"),
        Text(
            f"{first.pictures} pictures per variant for captions of the {first.protocol['split']} split, each "
            "variant at the guidance scale that was chosen for it on the validation split; distances over "
            f"{first.protocol['features']} features. Brackets are 95 % intervals over groups of pictures that differ in "
            f"skin tone or seed alone. Where that of a paired difference includes zero the verdict is “{UNDECIDED}”. "
            "The Fréchet distance is biased at this n; compare it with the last row."
        ),
        _variants(evaluations),
        _differences(evaluations, comparisons),
        *_licences(licences),
        *_apart(evaluations),
        Chart(
            charts.distance_over_clip([(item.title, [item.point]) for item in evaluations]),
            "Kernel distance over CLIP score with 95 % intervals.",
        ),
        *_guidance(evaluations, guidance),
    ]


def _variants(evaluations: Sequence[EvaluationRecord]) -> Table:
    real = evaluations[0].real.point
    measured = [(e.title, f"{e.point.guidance_scale:g}", e.point) for e in evaluations]
    rows = tuple(
        (
            title,
            scale,
            _interval(found.kernel_distance),
            f"{found.frechet_distance:.3f}",
            _interval(found.clip_score),
            _interval(found.retrieval_top1, percent=True),
        )
        for title, scale, found in (*measured, ("other real pictures", "-", real))
    )
    scores = ("kernel distance", "Fréchet distance", "CLIP score", f"top-1 of {real.retrieval_candidates}")
    return Table(("variant", "guidance", *scores), rows)


def _differences(evaluations: Sequence[EvaluationRecord], comparisons: Sequence[VariantComparison]) -> Table:
    titles = {item.variant: item.title for item in evaluations}
    rows = tuple(
        (
            f"{titles.get(c.other, c.other)} against {titles.get(c.reference, c.reference)}",
            f"{c.other_scale:g} against {c.reference_scale:g}",
            f"{_interval(c.distance_difference, signed=True)}: {c.distance_verdict}",
            _interval(c.distance_ratio) if c.distance_ratio else "-",
            f"{_interval(c.clip_difference, signed=True)}: {c.clip_verdict}",
        )
        for c in comparisons
    )
    return Table(
        ("paired", "guidance", "kernel distance, difference", "ratio", "CLIP score, difference"), rows
    )


def _licences(licences: Mapping[str, Licence]) -> list[Block]:
    """Which instruments may carry a verdict, and why the others may not."""
    rows = tuple((name, "yes" if item.licensed else "no", item.reason) for name, item in licences.items())
    return [Table(("instrument", "carries a verdict", "why"), rows)] if rows else []


def _apart(evaluations: Sequence[EvaluationRecord]) -> list[Block]:
    """Other categories and unknown words: never a headline."""
    rows = tuple(
        (
            item.title,
            part,
            _interval(found.kernel_distance),
            _interval(found.clip_score),
            _interval(found.retrieval_top1, percent=True),
        )
        for item in evaluations
        for part, found in item.apart.items()
    )
    if not rows:
        return []
    said = (
        "Reported apart: training captions of other categories (seen), and captions with a word that no training "
        "caption has (novel)."
    )
    return [Text(said), Table(("variant", "captions", "kernel distance", "CLIP score", "top-1"), rows)]


def _guidance(evaluations: Sequence[EvaluationRecord], guidance: Sequence[GuidanceRecord]) -> list[Block]:
    """The curves that the scales were chosen on; none where there was no choice."""
    titles = {item.variant: item.title for item in evaluations}
    curves = [(titles.get(item.variant, item.variant), item.points) for item in guidance if item.points]
    if not curves:
        return []
    caption = "Kernel distance over CLIP score on the validation split, one point per guidance scale."
    return [Heading("Guidance", sub=True), Chart(charts.distance_over_clip(curves), caption)]


def _interval(value: Interval, *, percent: bool = False, signed: bool = False) -> str:
    sign = "+" if signed else ""
    style = f"{sign}.0%" if percent else f"{sign}.4f"
    return f"{value.value:{style}} [{value.low:{style}}, {value.high:{style}}]"
