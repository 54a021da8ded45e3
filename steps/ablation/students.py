"""Arms that distil steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from artifacts_schema.ablation import ArmConfig
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.stage_configs import TrainingConfig
from steps.ablation.conditioned import ConditionedLoss, ConditionedUNet
from steps.diffusion.losses import SPLIT, DistillationLoss, Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.models.stored import load_model
from steps.training.loop import train
from steps.training.randomness import spawn


@dataclass(frozen=True)
class Made:
    """What an arm has trained, and how it went."""

    model: nn.Module
    curve: tuple[dict[str, float], ...]
    iterations: int


def phases(arm: ArmConfig, steps: int) -> list[tuple[int, int]]:
    """(teacher's steps, student's steps) of every phase: one, or a halving each."""
    if not arm.progressive:
        return [(arm.teacher_steps, steps)]
    found, teacher = [], arm.teacher_steps
    while teacher > steps:
        found.append((teacher, teacher // 2))
        teacher //= 2
    return found


def distilled(
    inputs: StageInputs,
    weights: Mapping[str, Any],
    arm: ArmConfig,
    config: SnapFusionConfig,
    context: StageContext,
    steps: int,
) -> Made:
    """A student of so many steps. A phase's student teaches the next one."""
    teacher = load_model(context.store, weights[arm.teacher]).requires_grad_(False).to(context.device)
    student: nn.Module = load_model(context.store, weights[arm.start])
    curve: list[dict[str, float]] = []
    todo = phases(arm, steps)
    training = config.student_8.training
    shared = training.model_copy(update={"iterations": training.iterations // len(todo)})
    for many, few in todo:
        if arm.conditioned:
            student = ConditionedUNet(student)
        student = student.requires_grad_(True).to(context.device)
        loss = _loss(inputs, teacher, arm, config, context, few=few, many=many)
        outcome = _train(student, loss, shared, inputs, context, few)
        done = curve[-1]["iteration"] if curve else 0.0
        curve += [{**point, "iteration": done + point["iteration"]} for point in outcome.curve]
        student = outcome.model.requires_grad_(False)
        teacher = student
        student = student if few == todo[-1][1] else _copy(student)
    return Made(student.eval(), tuple(curve), shared.iterations * len(todo))


def _loss(
    inputs: StageInputs,
    teacher: nn.Module,
    arm: ArmConfig,
    config: SnapFusionConfig,
    context: StageContext,
    *,
    few: int,
    many: int,
) -> DistillationLoss:
    shared = config.step_distillation
    schedule = NoiseSchedule.from_config(inputs.base.scheduler_config)
    kind = ConditionedLoss if arm.conditioned else DistillationLoss
    return kind(
        teacher=teacher,
        sampling=Sampling(inputs.data, schedule, shared.caption_dropout, context.device),
        student_steps=few,
        cfg_probability=shared.cfg_probability,
        cfg_range=shared.cfg_range,
        gamma=shared.gamma,
        dynamic_gamma=shared.dynamic_gamma,
        teacher_steps=many,
    )


def _train(
    student: nn.Module,
    loss: DistillationLoss,
    training: TrainingConfig,
    inputs: StageInputs,
    context: StageContext,
    few: int,
) -> Any:
    return train(
        student,
        loss,
        training=training,
        samples=inputs.data.order(SPLIT),
        seed=spawn(context.seed, f"{few} steps"),
        folder=context.checkpoints(f"checkpoints-{few}"),
        progress=context.progress,
        description=f"{context.label}, to {few} steps",
        device=context.device,
    )


def _copy(model: Any) -> nn.Module:
    fresh: nn.Module = type(model).from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh
