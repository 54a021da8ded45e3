"""`report`: comparisons, labels, headline numbers, and the files a person opens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Interval, Provenance, Record
from artifacts_schema.bundle import BundleManifest
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import TOO_FEW_PICTURES, EvaluationRecord, VariantComparison
from artifacts_schema.licences import Licence
from artifacts_schema.parts import ships
from artifacts_schema.references import FolderRef, ObjectRef
from artifacts_schema.report import CodeVersion, RunReport, StageSummary
from artifacts_schema.training import TrainingRecord
from steps.cache.notes import StageUse, report_of_run
from steps.cache.provenance import DISTRIBUTION
from steps.evaluation.compare import compare
from steps.evaluation.licences import licence_folders, licences_of, with_licences
from steps.evaluation.pictures import grid, png
from steps.evaluation.variants import COMPRESSED
from steps.latency.table import predict
from steps.report.content import Block
from steps.report.outputs import fetch_outputs
from steps.report.page import RunRecords, build_page
from steps.report.parts import ships_words
from steps.report.published import published_name
from steps.report.student import student_files
from steps.store import Store

# Reference, then what is held against it; "" is what ships.
_COMPARISONS = (
    ("base_50", ""),
    ("base_8", ""),
    ("base_8_dpm", ""),
    ("student_8", ""),
    ("base_50", COMPRESSED),
    ("student_8_small_decoder", COMPRESSED),
    ("base_50", "student_4_small_decoder"),
    ("base_4_dpm", "student_4_small_decoder"),
    ("base_50", "student_2_small_decoder"),
    ("base_2_dpm", "student_2_small_decoder"),
    ("base_50", "teacher_16"),
    ("base_50", "student_16"),
)
_ENOUGH_ITERATIONS = 100
_LONG = 1000  # fewer iterations than this say nothing about what the method can do


def compare_all(
    store: Store,
    evaluations: Sequence[EvaluationRecord],
    licences: Mapping[str, Licence],
    shipped: str = "student_8_small_decoder",
) -> list[VariantComparison]:
    """Every comparison whose two variants were evaluated, with the verdicts that licensed instruments stand behind.

    `shipped` is the variant that ships.
    """
    by_name = {record.variant: record for record in evaluations}
    pairs = [(reference, other or shipped) for reference, other in _COMPARISONS]
    return [
        with_licences(compare(store, by_name[reference], by_name[other]), licences)
        for reference, other in pairs
        if reference in by_name and other in by_name and reference != other
    ]


def labels(config: SnapFusionConfig, records: RunRecords) -> list[str]:
    """What a reader must know before any number: smoke runs, and runs too small for a claim."""
    found = [words] if (words := ships_words(config)) else []
    parts = len(found)
    if config.run.smoke:
        found.append("smoke: random micro models, a check of the machinery; no number here means anything")
    if config.run.rehearsal:
        found.append("rehearsal: every stage for minutes, on little data; no number here means anything")
    if any(record.is_smoke for record in records.evaluations):
        found.append(f"smoke: fewer than {TOO_FEW_PICTURES} pictures per variant")
    short = [
        name for name, r in records.trainings.items() if not r.skipped and r.iterations < _ENOUGH_ITERATIONS
    ]
    if short:
        found.append(f"smoke: fewer than {_ENOUGH_ITERATIONS} iterations in {', '.join(short)}")
    longest = max((r.iterations for r in records.trainings.values()), default=0)
    if len(found) == parts and 0 < longest < _LONG:
        found.append(
            "a short run: it shows that the method works from end to end and makes no claim about quality"
        )
    return found


def page_records(
    config: SnapFusionConfig,
    records: Mapping[str, Any],
    manifest: BundleManifest,
    store: Store,
    *,
    project_root: Path,
) -> RunRecords:
    """What the page shows, out of a run's records by stage (and label)."""
    evaluations = [record for name, record in records.items() if name.startswith("evaluation ")]
    licences = licences_of(evaluations, licence_folders(config.evaluation.protocols, project_root))
    evolution = records["architecture_evolution"]
    return RunRecords(
        name=config.run.name,
        smoke=config.run.smoke,
        latency_table=records["latency_profile"],
        trainings={name: record for name, record in records.items() if isinstance(record, TrainingRecord)},
        evolution=evolution if isinstance(evolution, EvolutionRecord) else None,
        evaluations=evaluations,
        guidance=[r for name, r in records.items() if name.startswith("guidance_selection ")],
        comparisons=compare_all(store, evaluations, licences, ships(config.run.skip)),
        licences=licences,
        components=[record for name, record in records.items() if name.startswith("coreml_export ")],
        manifest=manifest,
        drawing=records.get("bundle_drawing"),
        compression=records["coreml_compression"],
        skip=config.run.skip,
    )


def run(
    config: SnapFusionConfig,
    records: RunRecords,
    everything: Mapping[str, Record],
    store: Store,
    *,
    bundle: FolderRef,
    output: Path,
    uses: Mapping[str, StageUse],
    code: CodeVersion,
    provenance: Provenance,
) -> tuple[RunReport, list[Block]]:
    """Store the report and what a person opens, put that into `output` as well; returns the record and the page.

    `everything` maps a stage (or stage and variant) to its record; their identities, and that of the bundle's manifest,
    become the report's inputs. `bundle` is the stored bundle. `uses` says of the same names what the cache did, `code` and
    `provenance` are the report's own.
    """
    shown = config.evaluation.grid_pictures
    grids = _grids(records, store, shown=shown)
    named: dict[str, Record] = {**everything, "bundle": records.manifest}
    report = RunReport(
        stage="report",
        parents=tuple(record.identity() for record in everything.values()),
        config=config.model_dump(mode="json"),
        seed=config.run.seed,
        name=config.run.name,
        smoke=config.run.smoke,
        labels=tuple(labels(config, records)),
        inputs={name: record.identity() for name, record in named.items()},
        code=code,
        provenance=provenance,
        headline=headline(records),
        quality=quality(records),
        licences=dict(records.licences),
        evaluations=tuple(_evaluation_row(record) for record in records.evaluations),
        comparisons=tuple(records.comparisons),
        stages=tuple(_summary(name, record, uses.get(name)) for name, record in everything.items()),
        grids={name: store.put_bytes(data) for name, (_, data) in grids.items()},
        bundle=str(output / "bundle"),
        folder=str(output),
    )
    outputs = {f"bundle/{name}": ref for name, ref in bundle.files.items()}
    outputs |= {f"pictures/{name}": ref for name, ref in _pictures(records, store, grids, shown=shown)}
    outputs |= student_files(store, records, everything, report)
    report = report.model_copy(update={"outputs": FolderRef(files=outputs)})
    page = build_page(records, everything, store, report)
    fetch_outputs(store, report, output)
    report_of_run(store, output.name, report, named.values())
    return report, page


def headline(records: RunRecords) -> dict[str, float]:
    """The run's numbers under their published names, of what it made; a ratio is base over result."""
    evolution, table = records.evolution, records.latency_table
    numbers: dict[str, float] = {}
    if evolution is not None:
        numbers["unet.param_ratio"] = evolution.base_parameters / evolution.parameters
        numbers["unet.predicted_latency_ratio"] = table.whole / predict(table, evolution.architecture)
    if (training := records.trainings.get("decoder_distillation")) is not None:
        decoder = training.metrics
        numbers["decoder.param_ratio"] = decoder["parameter_ratio"]
        numbers["decoder.mac_ratio"] = decoder["mac_ratio"]
        numbers["decoder.psnr_db"] = decoder["psnr_db"]
    numbers |= _core_ml(records)
    numbers |= {name: value.value for name, value in quality(records).items()}
    return numbers


def quality(records: RunRecords) -> dict[str, Interval]:
    """What the run says about quality, with 95 % intervals; for those variants that were evaluated."""
    found: dict[str, Interval] = {}
    for item in records.comparisons:
        if name := published_name(item, records.skip):
            found[f"{name}.clip_difference"] = item.clip_difference
            found[f"{name}.distance_difference"] = item.distance_difference
            if item.distance_ratio is not None:
                found[f"{name}.distance_ratio"] = item.distance_ratio
    base = next((r for r in records.evaluations if r.variant == "base_50"), None)
    if base is not None:
        found["base.retrieval_top1"] = base.point.retrieval_top1
        found["real.retrieval_top1"] = base.real.point.retrieval_top1
    return found


def _core_ml(records: RunRecords) -> dict[str, float]:
    """Sizes, parity and picture of the exported components."""
    numbers: dict[str, float] = {}
    for item in records.components:
        numbers[f"coreml.{item.component}.size_mib"] = item.package.bytes / (1 << 20)
        if item.parity:
            numbers[f"coreml.{item.component}.psnr_exact_db"] = item.parity.exact_db
            numbers[f"coreml.{item.component}.psnr_rounded_db"] = item.parity.rounded_db
    if records.compression and records.compression.uncompressed:
        before = records.compression.uncompressed.bytes
        numbers["coreml.bundle.compression_ratio"] = before / sum(c.package.bytes for c in records.components)
    if records.drawing:
        numbers["coreml.bundle.image_psnr_db"] = records.drawing.scores.psnr_db.median
        numbers["coreml.bundle.clip_drop"] = records.drawing.scores.clip_drop
    return numbers


_Grids = Mapping[str, tuple[float, bytes]]  # variant to guidance scale and PNG of its pictures


def _grids(records: RunRecords, store: Store, *, shown: int) -> _Grids:
    """Grids of the first `shown` pictures. Drawn here, so that another number of them evaluates nothing again."""
    return {
        record.variant: (
            record.point.guidance_scale,
            _grid(load_file(store.path_of(record.point.images))["images"][:shown]),
        )
        for record in records.evaluations
    }


def _grid(images: Tensor) -> bytes:
    return png(grid(images, columns=min(8, len(images))))


def _pictures(
    records: RunRecords, store: Store, grids: _Grids, *, shown: int
) -> Iterator[tuple[str, ObjectRef]]:
    """Names and contents of the files below `pictures/`."""
    for variant, (scale, data) in grids.items():
        yield f"{variant}_guidance_{scale:g}.png", store.put_bytes(data)
    if records.drawing:
        yield "torch_above_bundle_below.png", records.drawing.grid
    captions = list(records.evaluations[0].captions[:shown]) if records.evaluations else []
    text = json.dumps(captions, ensure_ascii=False, indent=2) + "\n"
    yield "captions.json", store.put_bytes(text.encode())


def _evaluation_row(record: EvaluationRecord) -> dict[str, Any]:
    return {
        "variant": record.variant,
        "title": record.title,
        "sampler": record.sampler,
        "steps": record.steps,
        "pictures": record.pictures,
        "protocol": record.protocol_hash,
        "point": record.point.model_dump(mode="json", exclude={"images"}),
        "real": record.real.point.model_dump(mode="json", exclude={"images"}),
        "apart": {name: p.model_dump(mode="json", exclude={"images"}) for name, p in record.apart.items()},
    }


def _summary(name: str, record: Record, use: StageUse | None) -> StageSummary:
    provenance = record.provenance
    versions = provenance.versions if provenance else {}
    return StageSummary(
        stage=name,
        identity=record.identity(),
        wall_time_s=provenance.wall_time_s if provenance else 0.0,
        peak_memory_bytes=provenance.peak_memory_bytes if provenance else 0,
        iterations=int(getattr(record, "iterations", 0)),
        cached=use.cached if use else None,
        key=use.key if use else "",
        version=use.version if use else 0,
        source=versions.get("stage source", ""),
        code=versions.get(DISTRIBUTION, ""),
        made_by=provenance.run_id if provenance else "",
        images_per_s=getattr(record, "images_per_s", None),
    )
