"""`teacher_16`, `student_16`, `student_8`: step distillation from 2N to N steps (SnapFusion section 4).

One implementation for all; they differ in teacher, start, number of steps and in whether the loss is
CFG-aware:

- teacher_16: the full v UNet is its own teacher on the 2N-step grid; CFG-aware.
- student_16: the evolved UNet is its own teacher, or the full v UNet is; vanilla loss.
- student_8: teacher_16 teaches, student_16 is the start; CFG-aware.
- student_4, student_2, where asked for: the student before is teacher and start; CFG-aware.
"""

import logging

from torch import Tensor, nn

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.distillation_configs import DistillationStageConfig, StepDistillationConfig
from artifacts_schema.references import WeightsRef
from artifacts_schema.training import TrainingRecord
from steps.diffusion.losses import SPLIT, VALIDATION, DistillationLoss, LatentData, Sampling
from steps.diffusion.sampler import sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.placement import frozen, placed
from steps.training.randomness import keyed_normal
from steps.training.selection import HeldOut, spread

logger = logging.getLogger(__name__)


def run(inputs: StageInputs, config: SnapFusionConfig, context: StageContext) -> TrainingRecord:
    """The stage `context.stage`, one of them; see `distil_weights`."""
    shared = config.step_distillation
    own_teacher = context.stage != "student_16" or config.student_16.teacher == "architecture_evolution"
    return distil_weights(
        inputs.base,
        inputs.earlier("teacher" if own_teacher else "full"),
        inputs.earlier("student"),
        inputs.data,
        shared=shared,
        config=getattr(config, context.stage),
        context=context,
        student_steps=_steps(context.stage, shared),
        cfg_aware=context.stage != "student_16",
    )


def _steps(stage: str, shared: StepDistillationConfig) -> int:
    """Steps of the student that a stage makes."""
    few = shared.final_steps
    return {"student_8": few, "student_4": few // 2, "student_2": few // 4}.get(
        stage, shared.intermediate_steps
    )


def distil_weights(
    base: BaseModel,
    teacher: WeightsRef,
    student: WeightsRef,
    data: LatentData,
    *,
    shared: StepDistillationConfig,
    config: DistillationStageConfig,
    context: StageContext,
    student_steps: int,
    cfg_aware: bool,
) -> TrainingRecord:
    """Distil `teacher`, sampled in 2 * `student_steps` steps, into `student` at `student_steps` steps.

    Both predict v. The base gives the noise schedule. With `cfg_aware` the guided loss is mixed in with the
    configured probability, else the loss is the vanilla one.
    """
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    teacher_unet = placed(load_model(context.store, teacher), context.device)
    student_unet = load_model(context.store, student).requires_grad_(True)
    outcome = distil(
        teacher_unet,
        student_unet,
        Sampling(data, schedule, shared.caption_dropout, context.device),
        base.latent_shape,
        shared=shared,
        config=config,
        context=context,
        student_steps=student_steps,
        cfg_aware=cfg_aware,
    )
    selection = outcome.selection
    metrics = (
        {"teacher_mse_start": selection.at(0), "teacher_mse": selection.at(selection.chosen)}
        if selection is not None
        else {}
    )
    logger.info("stage=%s steps=%d %s", context.stage, student_steps, metrics)
    parents = (teacher.identity(), student.identity())
    return TrainingRecord(
        stage=context.stage,
        parents=parents,
        config={
            "step_distillation": shared.meaning_for(cfg_aware=cfg_aware),
            context.stage: config.meaning(),
            "cfg_aware": cfg_aware,
        },
        seed=context.seed,
        weights=save_model(context.store, outcome.model, schema=student.schema_id, parents=parents),
        iterations=outcome.iterations,
        batch_size=config.training.batch_size * config.training.accumulation,
        grid_steps=student_steps,
        curve=tuple(outcome.curve),
        selection=selection,
        metrics=metrics,
        images_per_s=outcome.images_per_s,
    )


def distil(
    teacher: nn.Module,
    student: nn.Module,
    sampling: Sampling,
    latent_shape: tuple[int, int, int],
    *,
    shared: StepDistillationConfig,
    config: DistillationStageConfig,
    context: StageContext,
    student_steps: int,
    cfg_aware: bool,
) -> TrainingOutcome:
    """The training itself, on models in memory; `student` is trained in place."""
    check = TeacherCheck(
        teacher, sampling, latent_shape, shared=shared, student_steps=student_steps, seed=context.seed
    )
    loss = DistillationLoss(
        teacher=frozen(teacher, context.device, config.training.precision),  # the check has its reference
        sampling=sampling,
        student_steps=student_steps,
        cfg_probability=shared.cfg_probability if cfg_aware else 0.0,
        cfg_range=shared.cfg_range,
        gamma=shared.gamma,
        dynamic_gamma=shared.dynamic_gamma,
    )
    return train(
        student,
        loss,
        training=config.training,
        samples=sampling.data.order(SPLIT),
        seed=context.seed,
        folder=context.checkpoints(),
        held_out=HeldOut(
            "mean squared difference of final latents from the teacher's", len(check.indices), check.distance
        ),
        progress=context.progress,
        description=f"{context.stage}, {2 * student_steps} to {student_steps} steps",
        device=context.device,
        processes=context.processes,
    )


class TeacherCheck:
    """How far a student's pictures are from the teacher's: same validation captions, same noise, guided.

    The distance is the mean squared difference of the final latents, whose variance is about 1. The teacher draws once,
    in 2 * `student_steps` steps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        sampling: Sampling,
        latent_shape: tuple[int, int, int],
        *,
        shared: StepDistillationConfig,
        student_steps: int,
        seed: int,
    ) -> None:
        self.sampling, self.student_steps = sampling, student_steps
        self.scale = shared.validation_guidance_scale
        there = sampling.data.size(VALIDATION)
        self.indices = spread(there, min(shared.validation_captions, there))
        self.noise = keyed_normal(
            latent_shape, seed=seed, name="teacher check", iteration=0, indices=self.indices
        )
        self.reference = self.sample(teacher, 2 * student_steps)

    def distance(self, student: nn.Module) -> float:
        """Mean squared difference of a student's final latents from the teacher's."""
        return float((self.sample(student, self.student_steps) - self.reference).square().mean())

    def sample(self, unet: nn.Module, steps: int) -> Tensor:
        """Final latents (n, c, h, w) of the validation captions."""
        return sample_latents(
            unet,
            self.sampling.schedule,
            noise=self.noise,
            embeddings=self.sampling.data.embeddings(VALIDATION, self.indices),
            empty_embedding=self.sampling.data.empty_embedding,
            steps=steps,
            guidance_scale=self.scale,
            prediction_type="v_prediction",
        )
