"""What each step body calls: which inputs and configuration sections a stage depends on, and the stage's function.

The settings and identities given to `run_stage` are exactly what the stage reads, so that a changed value reruns exactly
the stages downstream of it; of the plan a stage can read nothing else. Everything that imports torch is imported inside
`work`, which only runs when the cache misses.
"""

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record, content_hash
from artifacts_schema.bundle import (
    REQUIRED_COMPONENTS,
    BundleDrawing,
    BundleManifest,
    Component,
    ComponentReport,
    DrawingScores,
    Scheme,
)
from artifacts_schema.compression import CompressionRecord, compressed_reports
from artifacts_schema.config import SnapFusionConfig, StoreConfig
from artifacts_schema.evaluation import EvaluationRecord, RealPicturesRecord
from artifacts_schema.latency import LatencyTable
from artifacts_schema.plan import RunPlan
from artifacts_schema.references import WeightsRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from flows.commands.store_options import store_options
from flows.environment import PROJECT_ROOT, WORK_ROOT, usable_cores
from flows.runtime import (
    CardProgress,
    inputs_hash,
    machine_identity,
    output_folder,
    plain_context,
    provenance,
    run_stage,
    run_uses,
    store_of,
    unpack,
)
from steps.cache.provenance import DISTRIBUTION, code_version
from steps.files.errors import ConfigError
from steps.store import get_bytes, local_folder


@dataclass(frozen=True)
class Records:
    """Every record a finished part of the run has left, by its artifact."""

    plan: RunPlan
    latency_table: LatencyTable
    velocity: TrainingRecord
    robust: TrainingRecord
    evolution: EvolutionRecord
    teacher_16: TrainingRecord
    student_16: TrainingRecord
    student_8: TrainingRecord
    decoder: Any

    @classmethod
    def of(cls, flow: Any) -> "Records":
        """Read them from a flow's artifacts."""
        return cls(
            plan=unpack(flow.plan),
            latency_table=unpack(flow.latency_table),
            velocity=unpack(flow.velocity),
            robust=unpack(flow.robust),
            evolution=unpack(flow.evolution),
            teacher_16=unpack(flow.teacher_16_record),
            student_16=unpack(flow.student_16_record),
            student_8=unpack(flow.student_8_record),
            decoder=unpack(flow.decoder),
        )


def _identity(ref: WeightsRef | None) -> str:
    return ref.identity() if ref is not None else ""


def start(config: SnapFusionConfig) -> RunPlan:
    """Checks of every run, then preflight and data."""
    from steps.files.hashes import FileHashes
    from steps.inputs.checks import check_run
    from steps.inputs.folders import input_identities, raw_data

    store = store_of(config)
    store.check()
    check_run(config, PROJECT_ROOT, local_folder(config.store, WORK_ROOT))
    # A run to compare with that is not there fails now, not at the end.
    previous_reports(config, store)

    def work(context: Any, _: None) -> Record:
        from steps.stages.start import run

        return run(config, context, PROJECT_ROOT, raw)

    raw = raw_data(
        config.data, PROJECT_ROOT, FileHashes(WORK_ROOT / ".snapfusion" / "hashes", progress=CardProgress)
    )
    plan: RunPlan = run_stage(
        "start",
        work,
        config=config,
        settings={"base": config.base, "data": config.data},
        inputs=input_identities(config, PROJECT_ROOT, raw),
    ).record
    print(_estimates(config, plan))
    return plan


def _estimates(config: SnapFusionConfig, plan: RunPlan) -> str:
    """Time, memory and cost per stage, as far as they can be told beforehand."""
    from steps.latency.estimates import format_estimates, stage_estimates

    if not plan.estimates:
        return "no estimates: this plan was made by a version that measured none"
    origin = plan.provenance
    machine = f"{origin.device}, {origin.threads} threads" if origin else "an unknown machine"
    found = stage_estimates(config, plan.estimates)
    return format_estimates(found, price_per_hour=config.compute.price_per_hour, measured_on=machine)


def latency_profile(config: SnapFusionConfig, plan: RunPlan) -> LatencyTable:
    """Time every block; refuse a latency budget that no removal reaches."""

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.latency_profile import run

        return run(inputs.base, config.latency_profile, context)

    table: LatencyTable = run_stage(
        "latency_profile",
        work,
        config=config,
        settings={"latency_profile": config.latency_profile},
        plan=plan,
        reads=["base"],
        extra=_table_identity(config),
    ).record
    _check_budget(config, plan, table)
    return table


def _table_identity(config: SnapFusionConfig) -> dict[str, Any]:
    """What a table depends on beside its configuration: the machine, or the files that are imported."""
    profile = config.latency_profile
    if profile.table is None:
        return {} if profile.backend == "macs" else machine_identity(config)
    files = [Path(profile.table), Path(profile.table).with_name("manifest.json")]
    # A missing table has an empty hash, which no finished stage has: so it is read, and found missing.
    return {
        name: content_hash(path.read_text()) if path.is_file() else ""
        for name, path in zip(("table", "manifest"), files, strict=True)
    }


def _check_budget(config: SnapFusionConfig, plan: RunPlan, table: LatencyTable) -> None:
    """An impossible budget fails here, before hours of training, and not when evolution begins."""
    from steps.evolution.actions import check_reachable

    unet_config = json.loads(get_bytes(store_of(config), plan.base.files["unet/config.json"]))
    if config.architecture_evolution.decide_by == "macs":
        from steps.inputs.loaded import StageInputs
        from steps.stages.architecture_evolution import deciding_table

        inputs = StageInputs(plan, plain_context("latency_profile", config, "budget"), ["base"])
        table = deciding_table(inputs.base_with(()), table, config.architecture_evolution)
    check_reachable(table, unet_config, config.architecture_evolution)


def velocity_finetuning(config: SnapFusionConfig, plan: RunPlan) -> TrainingRecord:
    """eps-prediction to v-prediction."""

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.velocity_finetuning import run

        return run(
            inputs.base,
            inputs.data,
            config.velocity_finetuning,
            context,
            warm_start=inputs.folder("velocity_warm_start"),
        )

    return run_stage(
        "velocity_finetuning",
        work,
        config=config,
        settings={"velocity_finetuning": config.velocity_finetuning},
        plan=plan,
        reads=["base", "data", "velocity_warm_start"],
    ).record


def robust_training(config: SnapFusionConfig, plan: RunPlan, velocity: TrainingRecord) -> TrainingRecord:
    """Training with blocks skipped at random."""

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.robust_training import run

        return run(
            inputs.base,
            velocity.weights,
            inputs.data,
            config.robust_training,
            context,
            warm_start=inputs.folder("robust_warm_start"),
        )

    return run_stage(
        "robust_training",
        work,
        config=config,
        settings={"robust_training": config.robust_training},
        plan=plan,
        reads=["base", "data", "robust_warm_start"],
        inputs={"velocity": velocity.weights.identity()},
    ).record


def architecture_evolution(
    config: SnapFusionConfig, plan: RunPlan, robust: TrainingRecord, table: LatencyTable
) -> EvolutionRecord:
    """Algorithm 1. Where MACs decide, the table is no input: what another machine measures changes no decision."""
    used = {"latency_table": table.identity()} if config.architecture_evolution.decide_by == "table" else {}

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.architecture_evolution import run

        return run(
            inputs.base,
            robust.weights,
            table,
            inputs.data,
            inputs.signal_clip,
            config.architecture_evolution,
            context,
        )

    return run_stage(
        "architecture_evolution",
        work,
        config=config,
        settings={"architecture_evolution": config.architecture_evolution},
        plan=plan,
        reads=["base", "data", "signal_clip"],
        inputs={"robust": robust.weights.identity(), **used},
    ).record


def teacher_16(config: SnapFusionConfig, plan: RunPlan, velocity: TrainingRecord) -> TrainingRecord:
    """The full UNet on half of its own grid."""
    steps = config.step_distillation.intermediate_steps
    return _step_distillation(
        "teacher_16", config, plan, velocity.weights, velocity.weights, steps, cfg_aware=True
    )


def student_16(config: SnapFusionConfig, plan: RunPlan, evolution: EvolutionRecord) -> TrainingRecord:
    """The evolved UNet on half of its own grid, vanilla loss."""
    steps = config.step_distillation.intermediate_steps
    return _step_distillation(
        "student_16", config, plan, evolution.weights, evolution.weights, steps, cfg_aware=False
    )


def student_8(
    config: SnapFusionConfig, plan: RunPlan, teacher: TrainingRecord, student: TrainingRecord
) -> TrainingRecord:
    """From the intermediate grid to the final one; the teacher is the full UNet."""
    steps = config.step_distillation.final_steps
    return _step_distillation(
        "student_8", config, plan, teacher.weights, student.weights, steps, cfg_aware=True
    )


def _step_distillation(
    stage: str,
    config: SnapFusionConfig,
    plan: RunPlan,
    teacher: Any,
    student: Any,
    steps: int,
    *,
    cfg_aware: bool,
) -> TrainingRecord:
    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.step_distillation import run

        return run(
            inputs.base,
            teacher,
            student,
            inputs.data,
            config.step_distillation,
            getattr(config, stage),
            context,
            student_steps=steps,
            cfg_aware=cfg_aware,
        )

    return run_stage(
        stage,
        work,
        config=config,
        settings={
            "step_distillation": config.step_distillation.meaning_for(cfg_aware=cfg_aware),
            stage: getattr(config, stage),
        },
        plan=plan,
        reads=["base", "data"],
        inputs={"teacher": teacher.identity(), "student": student.identity()},
    ).record


def decoder_distillation(config: SnapFusionConfig, plan: RunPlan) -> Any:
    """The half-width decoder."""

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.decoder_distillation import run

        return run(inputs.base, inputs.data, config.decoder_distillation, context)

    return run_stage(
        "decoder_distillation",
        work,
        config=config,
        settings={"decoder_distillation": config.decoder_distillation},
        plan=plan,
        reads=["base", "data"],
    ).record


def real_pictures(config: SnapFusionConfig, plan: RunPlan) -> RealPicturesRecord:
    """Measure the split's own pictures, once for all variants."""

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.real_pictures import run

        return run(inputs, config.evaluation, context)

    return run_stage(
        "real_pictures",
        work,
        config=config,
        settings={"evaluation": config.evaluation},
        plan=plan,
        reads=["data", "measure_clip", "inception"],
    ).record


def evaluation(
    config: SnapFusionConfig, records: Records, real: RealPicturesRecord, variant: str
) -> EvaluationRecord:
    """Draw and measure one variant."""
    from steps.evaluation.variants import variants

    plan = records.plan
    chosen = variants(
        evaluation=config.evaluation,
        distillation=config.step_distillation,
        prediction_type="v_prediction" if plan.prediction_type == "v_prediction" else "epsilon",
        teacher=records.teacher_16.weights,
        student_intermediate=records.student_16.weights,
        student=records.student_8.weights,
        decoder=records.decoder.weights,
    )[variant]

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.evaluation import run

        return run(chosen, real, inputs, config.evaluation, context)

    return run_stage(
        "evaluation",
        work,
        config=config,
        settings={"evaluation": config.evaluation, "steps": chosen.steps},
        plan=plan,
        reads=["base", "data", "measure_clip", "inception"],
        inputs={
            "real_pictures": real.identity(),
            "unet": _identity(chosen.unet),
            "decoder": _identity(chosen.decoder),
        },
        label=variant,
    ).record


def coreml_export(config: SnapFusionConfig, records: Records, component: Component) -> ComponentReport:
    """Convert one component of what ships: the student, the small decoder, the base's text encoder."""
    plan, unet, decoder = records.plan, records.student_8.weights, records.decoder.weights

    def work(context: Any, inputs: Any) -> Record:
        from steps.export.samples import Pictures
        from steps.stages.coreml_export import NEEDED_WEIGHTS, run

        return run(
            component,
            inputs.base_with(NEEDED_WEIGHTS[component]),
            unet,
            decoder,
            Pictures.of(inputs.data, config.coreml_export.program_check.captions),
            config.coreml_export,
            context,
            prediction_type="v_prediction",
            attribution=plan.data.attribution,
        )

    used = {"unet": unet, "vae_decoder": decoder}.get(component)
    return run_stage(
        "coreml_export",
        work,
        config=config,
        settings={"coreml_export": config.coreml_export.meaning_for(component)},
        plan=plan,
        reads=["base", "data"],
        inputs={"weights": _identity(used)},
        label=component,
    ).record


def coreml_compression(
    config: SnapFusionConfig, records: Records, reports: Sequence[ComponentReport]
) -> tuple[CompressionRecord, tuple[ComponentReport, ...]]:
    """What was tried, and the reports with the packages that ship."""
    plan, unet, decoder = records.plan, records.student_8.weights, records.decoder.weights
    drawn = _drawn_with(reports)

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.coreml_compression import run

        folder: Path | None = None
        if len(drawn) == len(REQUIRED_COMPONENTS):
            folder = context.work / "uncompressed"
            _assemble(config, records, drawn, inputs, folder)
        return run(
            folder,
            inputs,
            unet,
            decoder,
            config.coreml_export,
            config.coreml_compression,
            context,
        )

    record: CompressionRecord = run_stage(
        "coreml_compression",
        work,
        config=config,
        settings={
            "coreml_compression": config.coreml_compression,
            "coreml_export.program_check.timesteps": config.coreml_export.program_check.timesteps,
            **_drawing_settings(config),
        },
        plan=plan,
        reads=["base", "data", "signal_clip"],
        inputs=_drawing_inputs(drawn, unet, decoder),
    ).record
    return record, compressed_reports(reports, record)


def _drawn_with(reports: Sequence[ComponentReport]) -> list[ComponentReport]:
    """The components that pictures are drawn with; the optional ones change none."""
    return [report for report in reports if report.component in REQUIRED_COMPONENTS]


def _drawing_settings(config: SnapFusionConfig) -> dict[str, Any]:
    """What decides the pictures of a bundle, besides its components."""
    return {
        "coreml_export.guidance_scale": config.coreml_export.guidance_scale,
        "coreml_export.program_check.pictures": config.coreml_export.program_check.pictures,
        "step_distillation.final_steps": config.step_distillation.final_steps,
    }


def _drawing_inputs(
    reports: Sequence[ComponentReport], unet: WeightsRef, decoder: WeightsRef
) -> dict[str, str]:
    """A bundle's components, and the models that torch draws with beside it."""
    components = {report.component: report.identity() for report in reports}
    return components | {"torch unet": unet.identity(), "torch decoder": decoder.identity()}


def bundle(
    config: SnapFusionConfig,
    records: Records,
    reports: Sequence[ComponentReport],
    compression: CompressionRecord,
) -> tuple[BundleManifest, BundleDrawing | None]:
    """Put everything a runtime needs into one folder, named by what is in it, once it has drawn pictures."""
    # First of all: it also quiets coremltools, which warns while it is imported.
    context = plain_context("bundle", config, inputs_hash([report.identity() for report in reports]))

    from steps.inputs.loaded import StageInputs

    drawn: list[BundleDrawing] = []

    def draw(folder: Path) -> DrawingScores:
        drawn.append(_bundle_drawing(config, records, reports, compression, folder))
        return drawn[0].scores

    manifest = _assemble(
        config,
        records,
        reports,
        StageInputs(records.plan, context),
        bundle_folder(config, records.plan, reports),
        schemes=compression.chosen,
        draw=draw,
    )
    return manifest, drawn[0] if drawn else None


def _assemble(
    config: SnapFusionConfig,
    records: Records,
    reports: Sequence[ComponentReport],
    inputs: Any,
    target: Path,
    *,
    schemes: Mapping[str, Scheme] | None = None,
    draw: Callable[[Path], DrawingScores] | None = None,
) -> BundleManifest:
    """Write a bundle of the run's models to `target`; see `assemble_bundle`."""
    from steps.diffusion.schedule import NoiseSchedule
    from steps.stages.coreml_export import assemble_bundle

    base = inputs.base
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    steps = config.step_distillation.final_steps
    return assemble_bundle(
        reports,
        base.path,
        inputs.context.store,
        target,
        steps=steps,
        guidance_scale=config.coreml_export.guidance_scale,
        schedule=base.scheduler_config,
        timesteps=schedule.grid(steps).tolist(),
        prediction_type="v_prediction",
        scaling_factor=base.scaling_factor,
        weights={
            "unet": records.student_8.weights.sha256,
            "vae_decoder": records.decoder.weights.sha256,
            "base": records.plan.base_identity,
        },
        made_of={
            "start": records.plan.identity(),
            "data": records.plan.data.identity(),
            "student_8": records.student_8.identity(),
            "decoder_distillation": records.decoder.identity(),
        },
        attribution=records.plan.data.attribution,
        schemes=schemes,
        draw=draw,
    )


def _bundle_drawing(
    config: SnapFusionConfig,
    records: Records,
    reports: Sequence[ComponentReport],
    compression: CompressionRecord,
    folder: Path,
) -> BundleDrawing:
    """Draw with the bundle in `folder`, beside torch; from the cache where the same components have drawn before."""
    plan, unet, decoder = records.plan, records.student_8.weights, records.decoder.weights
    compressed = any(scheme != "fp16" for scheme in compression.chosen.values())
    gates = config.coreml_compression if compressed else config.coreml_export.program_check
    gate = gates.min_image_psnr_db

    def work(context: Any, inputs: Any) -> Record:
        from steps.stages.bundle_drawing import run

        return run(folder, inputs, unet, decoder, config.coreml_export, context, min_image_psnr_db=gate)

    drawing: BundleDrawing = run_stage(
        "bundle_drawing",
        work,
        config=config,
        settings={"min_image_psnr_db": gate, **_drawing_settings(config)},
        plan=plan,
        reads=["base", "data", "measure_clip"],
        inputs=_drawing_inputs(_drawn_with(reports), unet, decoder),
    ).record
    return drawing


def bundle_folder(config: SnapFusionConfig, plan: RunPlan, reports: Sequence[ComponentReport]) -> Path:
    """A bundle's folder carries the hash of what is in it: two runs with the same result share it."""
    contents = [[report.identity() for report in reports], plan.base_identity, _drawing_settings(config)]
    return WORK_ROOT / ".snapfusion" / "bundles" / inputs_hash(contents)[:16]


def report(config: SnapFusionConfig, flow: Any, card: Any) -> RunReport:
    """Compare the variants, write report.json and pictures, and fill the card."""
    from flows.cards import render
    from steps.report.page import RunRecords
    from steps.stages.report import compare_all, run

    started, code = time.monotonic(), code_version()
    records, store = Records.of(flow), store_of(config)
    evaluations = [unpack(item) for item in flow.evaluations]
    components = [unpack(item) for item in flow.component_reports]
    trainings = {
        "velocity_finetuning": records.velocity,
        "robust_training": records.robust,
        "teacher_16": records.teacher_16,
        "student_16": records.student_16,
        "student_8": records.student_8,
        "decoder_distillation": records.decoder,
    }
    everything: dict[str, Record] = {
        "start": records.plan,
        "latency_profile": records.latency_table,
        **trainings,
    }
    everything |= {"architecture_evolution": records.evolution, "real_pictures": unpack(flow.real_pictures)}
    everything |= {f"evaluation {item.variant}": item for item in evaluations}
    everything |= {f"coreml_export {item.component}": item for item in components}
    compression = unpack(flow.compression)
    everything |= {"coreml_compression": compression}
    drawing = unpack(flow.bundle_drawing) if flow.bundle_drawing else None
    everything |= {"bundle_drawing": drawing} if drawing else {}
    page_records = RunRecords(
        name=config.run.name,
        smoke=config.run.smoke,
        latency_table=records.latency_table,
        trainings=trainings,
        evolution=records.evolution,
        evaluations=evaluations,
        comparisons=compare_all(store, evaluations),
        components=components,
        manifest=unpack(flow.manifest),
        drawing=drawing,
        compression=compression,
        previous=previous_reports(config, store),
    )
    result, page = run(
        config,
        page_records,
        everything,
        store,
        bundle=bundle_folder(config, records.plan, components),
        output=output_folder(config),
        uses=run_uses(store),
        code=code,
        provenance=provenance(
            started, device="cpu", threads=usable_cores(), versions={DISTRIBUTION: code.text}
        ),
    )
    render(card, page)
    return result


def previous_reports(config: SnapFusionConfig, store: Any) -> list[dict[str, Any]]:
    """Headlines of the runs named in `report.compare_to`. Raises ConfigError for one that is not in the store."""
    found = []
    for run_id in config.report.compare_to:
        text = store.get_document(f"reports/{run_id}")
        if text is None:
            known = (
                ", ".join(key.removeprefix("reports/") for key in store.list_documents("reports/")) or "none"
            )
            raise ConfigError(
                f"report.compare_to names run {run_id}, which has no report in the store; known: {known}"
            )
        found.append({"name": run_id, "headline": json.loads(text)["headline"]})
    return found


def end(result: RunReport, run_id: str) -> None:
    """Print where everything is."""
    folder = Path(result.folder)
    seconds = sum(stage.wall_time_s for stage in result.stages)
    peak = max((stage.peak_memory_bytes for stage in result.stages), default=0)
    print(f"\nrun {result.name}")
    for label in result.labels:
        print(f"  ({label})")
    for name, value in result.headline.items():
        print(f"  {name:52s} {value:.4g}")
    print(f"\nstages   {seconds:.0f} s of stage time, {peak / 2**30:.2f} GiB at most in one stage")
    print(f"bundle   {result.bundle}")
    print(f"report   {folder / 'report.json'}")
    print(f"pictures {folder / 'pictures'}")
    where = store_options(StoreConfig.model_validate(result.config["store"]))
    print(f"trace    python -m flows.commands.trace{where} {shlex.quote(result.bundle)}")
    print(f"card     python flows/snapfusion_flow.py card view {run_id}/report --id report")
    print(
        f'draw     python -m flows.commands.draw{where} --run {folder.name} "a caption" --output picture.png\n'
    )
