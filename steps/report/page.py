"""The whole report page from the records of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.bundle import BundleDrawing, BundleManifest, ComponentReport
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.evaluation import EvaluationRecord, GuidanceRecord, VariantComparison
from artifacts_schema.latency import LatencyTable
from artifacts_schema.references import ObjectRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.evaluation.pictures import grid, png
from steps.latency.table import predict
from steps.report import charts
from steps.report.content import Block, Chart, Heading, PictureRows, Table, Text
from steps.report.core_ml import core_ml
from steps.report.origins import origins
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
    evolution: EvolutionRecord
    evaluations: Sequence[EvaluationRecord]
    guidance: Sequence[GuidanceRecord]
    comparisons: Sequence[VariantComparison]
    components: Sequence[ComponentReport]
    manifest: BundleManifest
    drawing: BundleDrawing | None = None
    compression: CompressionRecord | None = None


def build_page(
    records: RunRecords, stages: Mapping[str, Record], store: Store, report: RunReport
) -> list[Block]:
    """All blocks of the page, in reading order. `stages` are the records of everything that ran, by stage."""
    return [
        *_head(records, report.labels),
        *_pictures(records, store),
        *quality(records.evaluations, records.comparisons, records.guidance),
        *_latency(records),
        *_architecture(records),
        *trainings(records.trainings, records.evolution),
        *core_ml(records.components, records.drawing, store, records.compression),
        *origins(report, stages),
    ]


def _head(records: RunRecords, labels: Sequence[str]) -> list[Block]:
    evolution, table = records.evolution, records.latency_table
    evolved = predict(table, evolution.architecture)
    decoder = records.trainings["decoder_distillation"].metrics
    small = next((e for e in records.evaluations if e.variant == "student_8_small_decoder"), None)
    rows = [
        (
            "UNet parameters",
            f"{evolution.base_parameters / 1e6:.2f} M",
            f"{evolution.parameters / 1e6:.2f} M",
        ),
        (
            f"guided UNet step, table ({table.backend})",
            f"{table.whole:.4g} {table.unit}",
            f"{evolved:.4g} {table.unit} ({evolved / table.whole:.0%})",
        ),
        (
            "decoder parameters",
            _millions(decoder.get("parameters_full")),
            _millions(decoder.get("parameters_small")),
        ),
        ("steps", str(_steps(records, "base_50")), str(small.steps if small else "")),
    ]
    return [
        Heading(f"SnapFusion run: {records.name}"),
        *(Text(label) for label in labels),
        Table(("what", "base", "what ships"), tuple(rows)),
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


def _architecture(records: RunRecords) -> list[Block]:
    evolution = records.evolution
    rows = tuple(
        (
            stage.stage,
            str(len(stage.kept) + len(stage.removed)),
            str(len(stage.blocks)),
            ", ".join(stage.removed) or "-",
            ", ".join(stage.copied) or "-",
        )
        for stage in evolution.architecture.stages
    )
    actions = tuple(
        (
            str(item.index + 1),
            action.kind,
            action.target,
            f"{action.value:.3g}",
            f"{action.predicted_after / evolution.base_latency:.1%}",
        )
        for item in evolution.rounds
        for action in item.actions
    )
    blocks: list[Block] = [
        Heading("Architecture"),
        Text(
            f"Budget {evolution.latency_budget:.0%} of the base's guided step "
            f"({evolution.latency_unit}); reached "
            f"{evolution.predicted_ratio:.1%}."
        ),
        Table(("stage", "blocks before", "after", "removed", "copies"), rows),
        Table(
            (
                "round",
                "action",
                "unit",
                f"CLIP lost at most, per {evolution.latency_unit} saved",
                "latency after",
            ),
            actions,
        ),
        Chart(charts.evolution_path(evolution), "Predicted latency after every action; dashed: the budget."),
    ]
    if evolution.rounds and evolution.rounds[0].scores:
        blocks.append(
            Chart(
                charts.unit_scores(evolution),
                "First round: CLIP score lost without each unit, ± one standard error; the captions are one per picture group.",
            )
        )
    return blocks


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"


def _steps(records: RunRecords, variant: str) -> int | str:
    return next((e.steps for e in records.evaluations if e.variant == variant), "-")
