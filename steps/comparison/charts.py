"""Charts of a comparison, as Vega-Lite specifications: every run in its colour, isolated by a click on the legend."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from steps.comparison.runs import Run
from steps.report.charts import point_row

_WIDTH = 940
_LABEL = 300
SHARED = "shared by all"
_COLOURS = ["#2f6f9f", "#d95f02", "#1b9e77", "#7b3294", "#b3261e", "#a6761d", "#e7298a"]
_GREY = "#666666"


def distance_over_clip(runs: Sequence[Run], subject: str) -> dict[str, object]:
    """Kernel distance over CLIP score of every variant of every run, with 95 % intervals."""
    rows = []
    for place, run in enumerate(runs):
        for variant, record in run.evaluations.items():
            found = [other.evaluations.get(variant) for other in runs]
            shared = len(runs) > 1 and len({item.point.images.sha256 if item else "" for item in found}) == 1
            if not shared or place == 0:
                name = SHARED if shared else run.title
                rows.append(_point(name, record.title, variant == subject, record.point))
    real = runs[0].evaluations[subject].real.point
    frame = pd.DataFrame([*rows, _point(SHARED, "real pictures", False, real)])
    chosen = alt.selection_point(fields=["run"], bind="legend")
    base = alt.Chart(frame).encode(
        color=_colour([*(run.title for run in runs), SHARED]),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.06)),
    )
    zoomed = alt.Scale(zero=False)
    marks = base.mark_point(filled=True).encode(
        x=alt.X("clip:Q", title="CLIP score (higher is better)", scale=zoomed),
        y=alt.Y("distance:Q", title="kernel distance (lower is better)", scale=zoomed),
        shape=alt.Shape(
            "variant:N", title=None, legend=alt.Legend(orient="bottom", columns=3, labelLimit=260)
        ),
        size=alt.condition("datum.shipped", alt.value(170), alt.value(70)),
        tooltip=["run", "variant", "guidance", "clip", "distance"],
    )
    across = base.mark_rule(strokeWidth=1.5).encode(x="clip_low:Q", x2="clip_high:Q", y="distance:Q")
    along = base.mark_rule(strokeWidth=1.5).encode(y="distance_low:Q", y2="distance_high:Q", x="clip:Q")
    # The legend is bound by the layer that it is drawn for, the first.
    chart = (across.add_params(chosen) + along + marks).properties(width=_WIDTH - 40, height=320)
    return _spec(chart)


def curves(runs: Sequence[Run]) -> dict[str, object] | None:
    """Loss of every training that the runs do not share, one panel a stage; None where there is none."""
    frame = pd.DataFrame(_curve_rows(runs))
    if frame.empty:
        return None
    stages = list(dict.fromkeys(frame["stage"]))
    chosen = alt.selection_point(fields=["run"], bind="legend")
    chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=16))
        .encode(
            x=alt.X("iteration:Q", title="iteration", axis=alt.Axis(tickCount=5)),
            y=alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False)),
            color=_colour([run.title for run in runs]),
            opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.08)),
            tooltip=["run", "iteration", "loss"],
        )
        .properties(width=(_WIDTH - 120) // 3, height=120)
        .add_params(chosen)
        .facet(facet=alt.Facet("stage:N", title=None, sort=stages), columns=3)
        .resolve_scale(x="independent", y="independent")
    )
    return _spec(chart)


def _curve_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of the chart; a stage that all runs took from one record has nothing to compare."""
    found: list[dict[str, Any]] = []
    for stage in dict.fromkeys(name for run in runs for name in _all_curves(run)):
        identities = {run.report.inputs.get(stage) for run in runs}
        if len(runs) > 1 and len(identities) == 1:
            continue
        for run in runs:
            found += [
                {"run": run.title, "stage": stage, "iteration": row["iteration"], "loss": row["loss"]}
                for row in _all_curves(run).get(stage, ())
                if "loss" in row
            ]
    return found


def _all_curves(run: Run) -> dict[str, tuple[dict[str, float], ...]]:
    evolution = run.evolution
    rounds = tuple(row for item in evolution.rounds for row in item.curve) if evolution else ()
    found = {"architecture_evolution": rounds} if rounds else {}
    return found | {name: record.curve for name, record in run.trainings.items() if record.curve}


def _point(run: str, variant: str, shipped: bool, point: Any) -> dict[str, Any]:
    return {"run": run, "variant": variant, "shipped": shipped, **point_row(point)}


def _colour(names: Sequence[str]) -> alt.Color:
    colours = [_GREY if name == SHARED else _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)]
    scale = alt.Scale(domain=list(names), range=colours)
    widest = min(_LABEL, 7 * max(map(len, names))) + 40  # pixels, with the mark
    columns = max(1, min(4, _WIDTH // widest))
    legend = alt.Legend(orient="top", labelLimit=_LABEL, columns=columns, title="click a run to see it alone")
    return alt.Color("run:N", scale=scale, legend=legend)


def _spec(chart: alt.TopLevelMixin) -> dict[str, object]:
    spec: dict[str, object] = chart.to_dict()
    return spec
