"""The whole report page from the records of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Interval, Record
from artifacts_schema.bundle import BundleDrawing, BundleManifest, ComponentReport
from artifacts_schema.compression import CompressionRecord
from artifacts_schema.evaluation import EvaluationRecord, VariantComparison
from artifacts_schema.latency import LatencyTable
from artifacts_schema.references import ObjectRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.evaluation.compare import UNDECIDED
from steps.evaluation.pictures import grid, png
from steps.latency.table import predict
from steps.report import charts
from steps.report.content import Block, Chart, PictureRows, Table, Text
from steps.report.core_ml import core_ml
from steps.report.origins import origins
from steps.store.base import Store

_COLUMNS = 8
# What trainings measure of themselves, for people.
_IN_WORDS = {
    "teacher_mse_start": "mean square to the teacher {:.3g} before",
    "teacher_mse": "{:.3g} after",
    "parameter_ratio": "{:.1f} times fewer parameters",
    "mac_ratio": "{:.1f} times fewer MAC",
    "psnr_start_db": "teacher's pictures to {:.1f} dB before",
    "psnr_db": "{:.1f} dB after",
    "held_out": "on {:.0f} held out",
    "psnr_real_db": "real ones to {:.1f} dB",
}


@dataclass(frozen=True)
class RunRecords:
    """Every record of a finished run, by what it is."""

    name: str
    smoke: bool
    latency_table: LatencyTable
    trainings: Mapping[str, TrainingRecord]
    evolution: EvolutionRecord
    evaluations: Sequence[EvaluationRecord]
    comparisons: Sequence[VariantComparison]
    components: Sequence[ComponentReport]
    manifest: BundleManifest
    drawing: BundleDrawing | None = None
    compression: CompressionRecord | None = None
    previous: Sequence[Mapping[str, Any]] = ()


def build_page(
    records: RunRecords, stages: Mapping[str, Record], store: Store, report: RunReport
) -> list[Block]:
    """All blocks of the page, in reading order. `stages` are the records of everything that ran, by stage."""
    return [
        *_head(records, report.labels),
        *_pictures(records, store),
        *_quality(records),
        *_latency(records),
        *_architecture(records),
        *_training(records),
        *core_ml(records.components, records.drawing, store, records.compression),
        *origins(report, stages),
        *_previous(records),
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
    banner = "".join(f"> **{label}**\n\n" for label in labels)
    return [
        Text(f"# SnapFusion run: {records.name}\n\n{banner}"),
        Table(("what", "base", "what ships"), tuple(rows)),
    ]


def _pictures(records: RunRecords, store: Store) -> list[Block]:
    if not records.evaluations:
        return []
    first = records.evaluations[0]
    scale = first.points[0].guidance_scale
    rows = [("real pictures", _row(store, first.real.images))]
    rows += [(r.title, _row(store, r.points[0].images)) for r in records.evaluations]
    captions = " · ".join(first.captions[:_COLUMNS])
    return [
        Text(f"## Pictures\n\nSame captions and same noise in every row, guidance scale {scale:g}."),
        PictureRows(tuple(rows), f"From left to right: {captions}"),
    ]


def _row(store: Store, ref: ObjectRef) -> bytes:
    images = load_file(store.path_of(ref))["images"][:_COLUMNS]
    enlarged = torch.nn.functional.interpolate(
        images.float(), scale_factor=max(1, 96 // images.shape[-1] + 1)
    )
    return png(grid(enlarged.to(torch.uint8), columns=_COLUMNS, gap=4))


def _quality(records: RunRecords) -> list[Block]:
    if not records.evaluations:
        return []
    rows = []
    for record in records.evaluations:
        for point in record.points:
            rows.append(
                (
                    record.title,
                    f"{point.guidance_scale:g}",
                    _interval(point.kernel_distance),
                    f"{point.frechet_distance:.3f}",
                    _interval(point.clip_score),
                    _interval(point.retrieval_top1, percent=True),
                )
            )
    real = records.evaluations[0].real
    rows.append(
        (
            "real pictures (against train)",
            "-",
            _interval(real.kernel_distance),
            f"{real.frechet_distance:.3f}",
            _interval(real.clip_score),
            _interval(real.retrieval_top1, percent=True),
        )
    )
    first = records.evaluations[0]
    features = first.protocol["features"]
    headers = (
        "variant",
        "guidance",
        "kernel distance",
        "Fréchet distance",
        "CLIP score",
        f"top-1 of {real.retrieval_candidates}",
    )
    compared = tuple(
        (
            f"{_title(records, c.other)} against {_title(records, c.reference)}",
            f"{c.guidance_scale:g}",
            f"{_interval(c.distance_difference, signed=True)}: {c.distance_verdict}",
            f"{_interval(c.clip_difference, signed=True)}: {c.clip_verdict}",
        )
        for c in records.comparisons
    )
    return [
        Text(
            f"## Quality\n\n{first.pictures} pictures per variant and guidance scale from the "
            f"{first.protocol['split']} split; distances over {features} features. Brackets are 95 % intervals. "
            f"Where the interval of a paired difference includes zero the verdict is “{UNDECIDED}”. "
            "The Fréchet distance is biased at this n; compare it with the last row."
        ),
        Table(headers, tuple(rows)),
        Table(("paired difference", "guidance", "kernel distance", "CLIP score"), compared),
        Chart(
            charts.distance_over_clip(records.evaluations),
            "Kernel distance over CLIP score with 95 % intervals.",
        ),
    ]


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
        Text(
            f"## Latency\n\nBackend {table.backend} on {table.device}, {table.threads} threads, {table.dtype}, batch "
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
        Text(
            f"## Architecture\n\nBudget {evolution.latency_budget:.0%} of the base's guided step "
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


def _training(records: RunRecords) -> list[Block]:
    curves = {name: record.curve for name, record in records.trainings.items() if record.curve}
    curves |= {
        "architecture_evolution": tuple(row for item in records.evolution.rounds for row in item.curve)
    }
    rows = tuple(
        (
            name,
            str(record.iterations),
            str(record.batch_size),
            f"{record.images_per_s.median:.1f} images/s" if record.images_per_s else "-",
            _clock(record),
            "shipped weights" if record.warm_start else "-",
            _metrics(record),
        )
        for name, record in records.trainings.items()
    )
    headers = ("training", "iterations", "batch", "throughput", "time", "warm start", "measured")
    blocks: list[Block] = [Text("## Training"), Table(headers, rows)]
    if any(curves.values()):
        blocks.append(
            Chart(charts.training_curves({k: v for k, v in curves.items() if v}), "Optimised loss.")
        )
    return blocks


def _previous(records: RunRecords) -> list[Block]:
    if not records.previous:
        return []
    names = sorted({name for item in records.previous for name in item["headline"]})
    rows = tuple(
        (str(item["name"]), *(f"{item['headline'][n]:.4g}" if n in item["headline"] else "-" for n in names))
        for item in records.previous
    )
    return [Text("## Other runs"), Table(("run", *names), rows)]


def _interval(value: Interval, *, percent: bool = False, signed: bool = False) -> str:
    sign = "+" if signed else ""
    style = f"{sign}.0%" if percent else f"{sign}.4f"
    return f"{value.value:{style}} [{value.low:{style}}, {value.high:{style}}]"


def _metrics(record: TrainingRecord) -> str:
    """A training's own numbers in words; one without words under its name. The table on top has the decoders' sizes."""
    shown = (
        _IN_WORDS.get(name, f"{name} {{:.4g}}").format(value)
        for name, value in record.metrics.items()
        if not name.startswith(("parameters_", "macs_"))
    )
    return ", ".join(shown) or "-"


def _clock(record: Record) -> str:
    return f"{record.provenance.wall_time_s:.0f} s" if record.provenance else "-"


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"


def _steps(records: RunRecords, variant: str) -> int | str:
    return next((e.steps for e in records.evaluations if e.variant == variant), "-")


def _title(records: RunRecords, variant: str) -> str:
    return next((e.title for e in records.evaluations if e.variant == variant), variant)
