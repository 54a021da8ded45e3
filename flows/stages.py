"""What each step body calls: which inputs and configuration sections a stage depends on, and the stage's function.

The identities given to `run_stage` are exactly what the stage reads, so that a changed value reruns exactly the stages
downstream of it. Everything that imports torch is imported inside `work`, which only runs when the cache misses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from artifacts_schema.architecture import EvolutionRecord
from artifacts_schema.base import Record
from artifacts_schema.bundle import BundleManifest, ComponentReport
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.evaluation import EvaluationRecord
from artifacts_schema.latency import LatencyTable
from artifacts_schema.plan import RunPlan
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from flows.environment import PROJECT_ROOT
from flows.runtime import machine_identity, run_stage, unpack


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


def _identity(ref: Any) -> str:
    return ref.identity() if ref is not None else ""


def start(config: SnapFusionConfig) -> RunPlan:
    """Preflight and data."""
    from steps.preflight import input_identities

    def work(context: Any) -> Record:
        from steps.preflight import run

        return run(config, context, PROJECT_ROOT)

    return run_stage(
        "start", work, config=config, sections=["base", "data"], inputs=input_identities(config, PROJECT_ROOT)
    ).record


def latency_profile(config: SnapFusionConfig, plan: RunPlan) -> LatencyTable:
    """Time every block; refuse a latency budget that no removal reaches."""

    def work(context: Any) -> Record:
        from steps.inputs import StageInputs
        from steps.latency_profile import run

        return run(StageInputs(plan, context).base, config.latency_profile, context)

    return run_stage(
        "latency_profile",
        work,
        config=config,
        sections=["latency_profile"],
        inputs=[plan.base.identity()],
        extra={} if config.latency_profile.backend == "macs" else machine_identity(config),
    ).record


def velocity_finetuning(config: SnapFusionConfig, plan: RunPlan) -> TrainingRecord:
    """eps-prediction to v-prediction."""

    def work(context: Any) -> Record:
        from steps.inputs import StageInputs
        from steps.velocity_finetuning import run

        inputs = StageInputs(plan, context)
        return run(
            inputs.base, inputs.data, config.velocity_finetuning, context, warm_start=inputs.folder("velocity_warm_start")
        )

    return run_stage(
        "velocity_finetuning",
        work,
        config=config,
        sections=["velocity_finetuning"],
        inputs=[plan.base.identity(), plan.data.identity(), _identity(plan.velocity_warm_start)],
    ).record


def robust_training(config: SnapFusionConfig, plan: RunPlan, velocity: TrainingRecord) -> TrainingRecord:
    """Training with blocks skipped at random."""

    def work(context: Any) -> Record:
        from steps.inputs import StageInputs
        from steps.robust_training import run

        inputs = StageInputs(plan, context)
        return run(
            inputs.base, velocity.weights, inputs.data, config.robust_training, context,
            warm_start=inputs.folder("robust_warm_start"),
        )

    return run_stage(
        "robust_training",
        work,
        config=config,
        sections=["robust_training"],
        inputs=[velocity.weights.identity(), plan.data.identity(), _identity(plan.robust_warm_start)],
    ).record


def architecture_evolution(
    config: SnapFusionConfig, plan: RunPlan, robust: TrainingRecord, table: LatencyTable
) -> EvolutionRecord:
    """Algorithm 1."""

    def work(context: Any) -> Record:
        from steps.architecture_evolution import run
        from steps.inputs import StageInputs

        inputs = StageInputs(plan, context)
        return run(
            inputs.base, robust.weights, table, inputs.data, inputs.signal_clip, config.architecture_evolution, context
        )

    return run_stage(
        "architecture_evolution",
        work,
        config=config,
        sections=["architecture_evolution"],
        inputs=[robust.weights.identity(), table.identity(), plan.data.identity(), _identity(plan.signal_clip)],
    ).record


def teacher_16(config: SnapFusionConfig, plan: RunPlan, velocity: TrainingRecord) -> TrainingRecord:
    """The full UNet on half of its own grid."""
    steps = config.step_distillation.intermediate_steps
    return _step_distillation("teacher_16", config, plan, velocity.weights, velocity.weights, steps, cfg_aware=True)


def student_16(config: SnapFusionConfig, plan: RunPlan, evolution: EvolutionRecord) -> TrainingRecord:
    """The evolved UNet on half of its own grid, vanilla loss."""
    steps = config.step_distillation.intermediate_steps
    return _step_distillation("student_16", config, plan, evolution.weights, evolution.weights, steps, cfg_aware=False)


def student_8(
    config: SnapFusionConfig, plan: RunPlan, teacher: TrainingRecord, student: TrainingRecord
) -> TrainingRecord:
    """From the intermediate grid to the final one; the teacher is the full UNet."""
    steps = config.step_distillation.final_steps
    return _step_distillation("student_8", config, plan, teacher.weights, student.weights, steps, cfg_aware=True)


def _step_distillation(
    stage: str, config: SnapFusionConfig, plan: RunPlan, teacher: Any, student: Any, steps: int, *, cfg_aware: bool
) -> TrainingRecord:
    def work(context: Any) -> Record:
        from steps.inputs import StageInputs
        from steps.step_distillation import run

        inputs = StageInputs(plan, context)
        return run(
            inputs.base, teacher, student, inputs.data, config.step_distillation, getattr(config, stage), context,
            student_steps=steps, cfg_aware=cfg_aware,
        )

    return run_stage(
        stage,
        work,
        config=config,
        sections=["step_distillation", stage],
        inputs=[teacher.identity(), student.identity(), plan.base.identity(), plan.data.identity()],
    ).record


def decoder_distillation(config: SnapFusionConfig, plan: RunPlan) -> Any:
    """The half-width decoder."""

    def work(context: Any) -> Record:
        from steps.decoder_distillation import run
        from steps.inputs import StageInputs

        inputs = StageInputs(plan, context)
        return run(inputs.base, inputs.data, config.decoder_distillation, context)

    return run_stage(
        "decoder_distillation",
        work,
        config=config,
        sections=["decoder_distillation"],
        inputs=[plan.base.identity(), plan.data.identity()],
    ).record
