"""The whole report page from the records of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.bundle import BundleDrawing, BundleManifest, ComponentReport
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.evaluation import EvaluationRecord, GuidanceRecord, VariantComparison
from artifacts_schema.latency import LatencyTable
from artifacts_schema.licences import Licence
from artifacts_schema.parts import ships
from artifacts_schema.references import ObjectRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.evaluation.pictures import grid, png
from steps.latency.table import predict
from steps.report import charts
from steps.report.architecture import architecture
from steps.report.content import Block, Chart, Heading, PictureRows, Table, Text
from steps.report.core_ml import core_ml
from steps.report.origins import origins
from steps.report.parts import skipped
from steps.report.quality import quality
from steps.report.trainings import trainings
from steps.store.base import Store

_COLUMNS = 8


@dataclass(frozen=True)
class RunRecords:
    """Every record of a finished run, by what it is."""

    name: str
    smoke: bool
    latency_table: LatencyTable
    trainings: Mapping[str, TrainingRecord]
    evolution: EvolutionRecord | None
    evaluations: Sequence[EvaluationRecord]
    guidance: Sequence[GuidanceRecord]
    comparisons: Sequence[VariantComparison]
    components: Sequence[ComponentReport]
    manifest: BundleManifest
    drawing: BundleDrawing | None = None
    compression: CompressionRecord | None = None
    licences: Mapping[str, Licence] = field(default_factory=dict)
    skip: Sequence[str] = ()  # stages that the run was not asked for


def build_page(
    records: RunRecords, stages: Mapping[str, Record], store: Store, report: RunReport
) -> list[Block]:
    """All blocks of the page, in reading order. `stages` are the records of everything that ran, by stage."""
    return [
        *_head(records, report.labels),
        *skipped(stages),
        *_pictures(records, store),
        *quality(records.evaluations, records.comparisons, records.guidance, records.licences),
        *_latency(records),
        *architecture(records.evolution),
        *trainings(records.trainings, records.evolution),
        *core_ml(records.components, records.drawing, store, records.compression),
        *origins(report, stages),
    ]


def _head(records: RunRecords, labels: Sequence[str]) -> list[Block]:
    first, shipped = (
        next((e for e in records.evaluations if e.variant == name), None)
        for name in ("base_50", ships(records.skip))
    )
    steps = ("steps", str(first.steps if first else "-"), str(shipped.steps if shipped else "-"))
    return [
        Heading(f"SnapFusion run: {records.name}"),
        *(Text(label) for label in labels),
        Table(("what", "base", "what ships"), (*_sizes(records), steps)),
    ]


def _sizes(records: RunRecords) -> list[tuple[str, str, str]]:
    """What the UNet and the decoder were and are; a part that was skipped is as it was."""
    evolution, table = records.evolution, records.latency_table
    whole, unet = f"{table.whole:.4g} {table.unit}", float(table.rows["unet"].parameters)
    sizes, step = (_millions(unet), "the same"), "the same"
    if evolution is not None:
        sizes = (_millions(evolution.base_parameters), _millions(evolution.parameters))
        evolved = predict(table, evolution.architecture)
        step = f"{evolved:.4g} {table.unit} ({evolved / table.whole:.0%})"
    training = records.trainings.get("decoder_distillation")
    decoder = training.metrics if training else {}
    return [
        ("UNet parameters", *sizes),
        (f"guided UNet step, table ({table.backend})", whole, step),
        (
            "decoder parameters",
            _millions(decoder.get("parameters_full")),
            _millions(decoder.get("parameters_small")) if training else "the same",
        ),
    ]


def _pictures(records: RunRecords, store: Store) -> list[Block]:
    if not records.evaluations:
        return []
    first = records.evaluations[0]
    rows = [
        (f"{r.title}, guidance {r.point.guidance_scale:g}", _row(store, r.point.images))
        for r in records.evaluations
    ]
    captions = " · ".join(first.captions[:_COLUMNS])
    return [
        Heading("Pictures"),
        Text("Same captions and same noise in every row."),
        PictureRows(tuple(rows), f"From left to right: {captions}"),
    ]


def _row(store: Store, ref: ObjectRef) -> bytes:
    images = load_file(store.path_of(ref))["images"][:_COLUMNS]
    enlarged = torch.nn.functional.interpolate(
        images.float(), scale_factor=max(1, 96 // images.shape[-1] + 1)
    )
    return png(grid(enlarged.to(torch.uint8), columns=_COLUMNS, gap=4))


def _latency(records: RunRecords) -> list[Block]:
    table = records.latency_table
    whole = table.rows
    rows = tuple(
        (
            name,
            f"{whole[name].latency.median:.4g} {table.unit}",
            f"{whole[name].latency.p10:.4g} to {whole[name].latency.p90:.4g}",
            str(whole[name].latency.n),
        )
        for name in ("text_encoder", "unet", "decoder")
        if name in whole
    )
    return [
        Heading("Latency"),
        Text(
            f"Backend {table.backend} on {table.device}, {table.threads} threads, {table.dtype}, batch "
            f"{table.batch}. The parts add up to {table.explained:.1%} of the whole guided step."
        ),
        Table(("model", "median", "10th to 90th percentile", "n"), rows),
        Chart(
            charts.latency_shares(table), "Share of time and of parameters per block, in order of execution."
        ),
    ]


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"
