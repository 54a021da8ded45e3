"""The card of an ablation: a table of all arms, curves, and pictures from the same noise."""

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from artifacts_schema.ablation import REFERENCE, AblationRecord
from artifacts_schema.base import Interval
from artifacts_schema.evaluation import GuidancePoint
from artifacts_schema.references import ObjectRef
from steps.evaluation.bench import groups_of
from steps.evaluation.distances import Estimate, clustered_mean, kernel_distance
from steps.evaluation.pictures import grid, png
from steps.files.errors import EvaluationError
from steps.report import charts
from steps.report.content import Block, Chart, Heading, PictureRows, Table, Text
from steps.store.base import Store

_AGAINST = {"h": "h_evolved", "i": "i_sliced_50", "j": "h_evolved"}
_SHOWN = 8


def against(record: AblationRecord) -> str:
    """The arm that another one is held against; of those that draw without training, none."""
    return "" if record.arm.arm == "g" else _AGAINST.get(record.arm.arm, REFERENCE)


def differences(
    store: Store, records: Sequence[AblationRecord]
) -> dict[tuple[str, str], dict[str, Interval]]:
    """Paired differences of kernel distance and CLIP score from the arm it is held against, by arm and point.

    Raises EvaluationError where the two were measured on other protocols.
    """
    by_name = {record.name: record for record in records}
    found: dict[tuple[str, str], dict[str, Interval]] = {}
    for record in records:
        other = by_name.get(against(record))
        if other is None or other is record:
            continue
        if record.protocol != other.protocol:
            raise EvaluationError(f"{record.name} and {other.name} were not measured alike; run both again")
        for place, point in record.points.items():
            if place in other.points:
                found[record.name, place] = {
                    name: own.minus(theirs).interval()
                    for (name, own), theirs in zip(
                        _estimates(store, record, point).items(),
                        _estimates(store, other, other.points[place]).values(),
                        strict=True,
                    )
                }
    return found


def _estimates(store: Store, record: AblationRecord, point: GuidancePoint) -> dict[str, Estimate]:
    tensors = load_file(store.path_of(point.images))
    groups = groups_of(list(record.captions))
    real = load_file(store.path_of(record.reference.features))["features"].numpy()
    return {
        "kernel_distance": kernel_distance(
            tensors["features"].numpy(),
            real,
            groups=groups,
            real_groups=groups_of(list(record.reference.captions)),
        ),
        "clip_score": clustered_mean(tensors["clip"].tolist(), groups),
    }


def page(store: Store, records: Sequence[AblationRecord], run_id: str) -> list[Block]:
    """All blocks, in reading order."""
    apart = differences(store, records)
    first = records[0]
    points = [
        (f"{record.name}, {place}", [point]) for record in records for place, point in record.points.items()
    ]
    curves = {record.name: record.curve for record in records if record.curve}
    return [
        Heading(f"Ablations of run {run_id}"),
        Text(
            f"{len(first.captions)} pictures an arm on the {first.protocol['split']} protocol, the same noise and captions. "
            "Differences are paired, from the arm named; brackets are 95 % intervals over picture groups."
        ),
        Table(
            (
                "arm",
                "what differs",
                "point",
                "kernel distance",
                "CLIP score",
                "top-1",
                "held against",
                "distance",
                "CLIP",
            ),
            tuple(row for record in records for row in _rows(record, apart)),
        ),
        Chart(charts.distance_over_clip(points), "Kernel distance over CLIP score with 95 % intervals."),
        Heading("Pictures", sub=True),
        PictureRows(
            tuple(
                (f"{record.name}, {place}", _row(store, point.images))
                for record in records
                for place, point in record.points.items()
            ),
            f"From left to right: {' · '.join(first.captions[:_SHOWN])}",
        ),
        Heading("Questions and losses", sub=True),
        *(Text(f"{record.name}: {record.question}") for record in records),
        *([Chart(charts.training_curves(curves), "Optimised loss.")] if curves else []),
    ]


def _rows(
    record: AblationRecord, apart: Mapping[tuple[str, str], Mapping[str, Interval]]
) -> list[tuple[str, ...]]:
    changes = ", ".join(f"{name} = {value}" for name, value in record.changes.items()) or "nothing"
    rows: list[tuple[str, ...]] = []
    for place, point in record.points.items():
        found = apart.get((record.name, place))
        rows.append(
            (
                record.name,
                changes,
                place,
                _text(point.kernel_distance),
                _text(point.clip_score),
                f"{point.retrieval_top1.value:.0%}",
                against(record) if found else "-",
                _text(found["kernel_distance"], sign="+") if found else "-",
                _text(found["clip_score"], sign="+") if found else "-",
            )
        )
    return rows


def _text(value: Interval, sign: str = "") -> str:
    return f"{value.value:{sign}.4f} [{value.low:{sign}.4f}, {value.high:{sign}.4f}]"


def _row(store: Store, ref: ObjectRef) -> bytes:
    images = load_file(store.path_of(ref))["images"][:_SHOWN]
    enlarged = torch.nn.functional.interpolate(
        images.float(), scale_factor=max(1, 96 // images.shape[-1] + 1)
    )
    return png(grid(enlarged.to(torch.uint8), columns=_SHOWN, gap=4))
