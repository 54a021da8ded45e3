"""Charts of a report, as Vega-Lite specifications made with Altair."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.evaluation import GuidancePoint
from artifacts_schema.latency import LatencyTable

WIDTH = 760
_HEIGHT = 260


def latency_shares(table: LatencyTable) -> dict[str, object]:
    """Share of time and of parameters per block, in order of execution (the paper's Figure 2)."""
    rows = [
        {"block": name, "share": share[kind], "of": label}
        for name, share in table.shares().items()
        for kind, label in (("time", "time"), ("parameters", "parameters"))
    ]
    order = list(table.shares())
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            y=alt.Y("block:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)),
            x=alt.X("share:Q", title="share", axis=alt.Axis(format="%")),
            yOffset=alt.YOffset("of:N", sort=["time", "parameters"]),
            color=alt.Color("of:N", title=None, scale=alt.Scale(range=["#d95f02", "#1b9e77"])),
            tooltip=["block", "of", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=WIDTH - 240, height=16 * len(order))
    )
    return _spec(chart)


def training_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, object]:
    """Loss of every training, one small panel each."""
    rows = [
        {"stage": stage, "iteration": row["iteration"], "loss": row["loss"]}
        for stage, curve in curves.items()
        for row in curve
        if "loss" in row
    ]
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(point=alt.OverlayMarkDef(size=14))
        .encode(
            x=alt.X("iteration:Q", title="iteration"),
            y=alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False)),
        )
        .properties(width=(WIDTH - 190) // 3, height=110)
        .facet(facet=alt.Facet("stage:N", title=None, sort=list(curves)), columns=3)
        .resolve_scale(x="independent", y="independent")
    )
    return _spec(chart)


def evolution_path(record: EvolutionRecord) -> dict[str, object]:
    """Predicted latency of the guided step after every action, against the budget."""
    latencies = [record.base_latency]
    labels = ["base"]
    for item in record.rounds:
        for action in item.actions:
            latencies.append(action.predicted_after)
            labels.append(f"{action.kind} {action.target}")
    frame = pd.DataFrame(
        {
            "action": range(len(latencies)),
            "latency": [value / record.base_latency for value in latencies],
            "what": labels,
        }
    )
    line = (
        alt.Chart(frame)
        .mark_line(point=True, interpolate="step-after")
        .encode(
            x=alt.X("action:Q", title="actions done", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("latency:Q", title="of the base's guided step", axis=alt.Axis(format="%")),
            tooltip=["what", alt.Tooltip("latency:Q", format=".1%")],
        )
    )
    budget = (
        alt.Chart(pd.DataFrame({"budget": [record.latency_budget]}))
        .mark_rule(strokeDash=[6, 4], color="#d95f02")
        .encode(y="budget:Q")
    )
    return _spec((line + budget).properties(width=WIDTH - 100, height=_HEIGHT))


def unit_scores(record: EvolutionRecord) -> dict[str, object]:
    """Score of every unit in the first round: CLIP lost without it, with one standard error."""
    scores = record.rounds[0].scores if record.rounds else ()
    frame = pd.DataFrame(
        {
            "unit": [score.unit for score in scores],
            "difference": [score.difference for score in scores],
            "low": [score.difference - score.standard_error for score in scores],
            "high": [score.difference + score.standard_error for score in scores],
        }
    )
    base = alt.Chart(frame).encode(y=alt.Y("unit:N", sort="-x", title=None, axis=alt.Axis(labelLimit=320)))
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="CLIP score lost without it"), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=50).encode(x="difference:Q")
    return _spec((bars + points).properties(width=WIDTH - 340, height=18 * max(1, len(scores))))


def point_row(point: GuidancePoint) -> dict[str, float]:
    """A point of quality as columns of a chart: its guidance scale, CLIP score and kernel distance with their intervals."""
    distance, clip = point.kernel_distance, point.clip_score
    return {
        "guidance": point.guidance_scale,
        "clip": clip.value,
        "clip_low": clip.low,
        "clip_high": clip.high,
        "distance": distance.value,
        "distance_low": distance.low,
        "distance_high": distance.high,
    }


def distance_over_clip(curves: Sequence[tuple[str, Sequence[GuidancePoint]]]) -> dict[str, object]:
    """Kernel distance against CLIP score, with 95 % intervals; `curves` are titles and points."""
    rows = []
    for title, points in curves:
        for point in points:
            rows.append({"variant": title, **point_row(point)})
    base = alt.Chart(pd.DataFrame(rows)).encode(
        color=alt.Color(
            "variant:N", title=None, legend=alt.Legend(labelLimit=260, orient="bottom", columns=2)
        )
    )
    x, y = (
        alt.X("clip:Q", title="CLIP score (higher is better)"),
        alt.Y("distance:Q", title="kernel distance (lower is better)"),
    )
    scale = alt.Scale(zero=False)
    marks = base.mark_point(filled=True, size=70).encode(
        x=x.scale(scale), y=y.scale(scale), tooltip=["variant", "guidance", "clip", "distance"]
    )
    across = base.mark_rule().encode(x="clip_low:Q", x2="clip_high:Q", y="distance:Q")
    along = base.mark_rule().encode(y="distance_low:Q", y2="distance_high:Q", x="clip:Q")
    lines = base.mark_line(opacity=0.5).encode(x="clip:Q", y="distance:Q", order="guidance:Q")
    return _spec((lines + across + along + marks).properties(width=WIDTH - 100, height=_HEIGHT + 80))


def size_and_pictures(record: CompressionRecord) -> dict[str, object]:
    """Worst picture (dB) against the component's size (MiB), one point a variant."""
    rows = [
        {
            "component": item.component,
            "scheme": item.scheme,
            "mib": item.bytes / (1 << 20),
            "psnr": item.scores.worst_psnr_db,
        }
        for item in record.variants
        if item.scores
    ]
    frame = pd.DataFrame(rows, columns=["component", "scheme", "mib", "psnr"])
    base = alt.Chart(frame).encode(
        x=alt.X("mib:Q", title="size, MiB"),
        y=alt.Y("psnr:Q", title="worst picture against torch's, dB", scale=alt.Scale(zero=False)),
        color=alt.Color("component:N", title=None),
    )
    points = base.mark_point(filled=True, size=70).encode(tooltip=["component", "scheme", "mib", "psnr"])
    names = base.mark_text(align="left", dx=7).encode(text="scheme:N")
    gate = pd.DataFrame({"psnr": [record.config["min_image_psnr_db"]]})
    line = alt.Chart(gate).mark_rule(strokeDash=[4, 4]).encode(y="psnr:Q")
    chart = (base.mark_line(opacity=0.5) + points + names + line).properties(
        width=WIDTH - 160, height=_HEIGHT
    )
    return _spec(chart)


def _spec(chart: alt.TopLevelMixin) -> dict[str, object]:
    spec: dict[str, object] = chart.configure_view(continuousWidth=WIDTH).to_dict()
    return spec
