"""Every stage that trains, on tiny models, with one process and with two: how far apart gradients and weights are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from artifacts_schema.distillation_configs import (
    DecoderDistillationConfig,
    DistillationStageConfig,
    StepDistillationConfig,
)
from artifacts_schema.stage_configs import (
    ArchitectureEvolutionConfig,
    LatencyProfileConfig,
    RobustTrainingConfig,
    TrainingConfig,
    VelocityFinetuningConfig,
)
from steps.inputs.context import StageContext
from steps.models.stored import save_model
from steps.stages import (
    architecture_evolution,
    decoder_distillation,
    latency_profile,
    robust_training,
    step_distillation,
    velocity_finetuning,
)
from tests.factories import stage_context, tiny_base, tiny_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE
from tests.steps.evolution.factories import BrightnessScorer, TinyData

TRAINING = TrainingConfig(iterations=20, batch_size=4, learning_rate=1e-4, log_interval=5)
UNET = "diffusers.UNet2DConditionModel"
Stage = Callable[[StageContext, TrainingConfig], Any]


def _base(context: StageContext) -> Any:
    """The text of the smallest UNet's data is the same at every token: gradients of its attention are noise."""
    base, folder = tiny_base(), context.work / "base"
    base.unet.save_pretrained(folder)
    return replace(base, path=folder, scheduler_config=dict(SD_SCHEDULE))


def velocity(context: StageContext, training: TrainingConfig) -> Any:
    config = VelocityFinetuningConfig(training=training)
    return velocity_finetuning.finetune(_base(context), TinyData(), config, context)


def robust(context: StageContext, training: TrainingConfig) -> Any:
    weights = save_model(context.store, tiny_unet(), schema=UNET)
    config = RobustTrainingConfig(training=training, drop_probability=0.3, ramp_fraction=0.1)
    return robust_training.train_robust(_base(context), weights, TinyData(), config, context)


def distillation(context: StageContext, training: TrainingConfig) -> Any:
    teacher, student = (save_model(context.store, tiny_unet(seed), schema=UNET) for seed in (0, 1))
    return step_distillation.distil_weights(
        _base(context),
        teacher,
        student,
        TinyData(),
        shared=StepDistillationConfig(cfg_probability=0.5, validation_captions=2),
        config=DistillationStageConfig(training=training),
        context=context,
        student_steps=2,
        cfg_aware=context.stage != "student_16",
    )


def evolution(context: StageContext, training: TrainingConfig) -> Any:
    base = tiny_base()
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    weights = save_model(context.store, tiny_unet(), schema=UNET)
    config = ArchitectureEvolutionConfig(
        training=training, latency_budget=0.75, rounds=2, actions_per_round=3, captions_per_batch=2, most_captions=2,
        probe_steps=1, probe_guidance_scale=1.0,
    )  # fmt: skip
    return architecture_evolution.evolve(
        base, weights, table, TinyData(), BrightnessScorer(), config=config, context=context
    )


def decoder(context: StageContext, training: TrainingConfig) -> Any:
    config = DecoderDistillationConfig(training=training, pool_size=12, ddim_steps=1, guidance_scale=1.0)
    return decoder_distillation.distil_decoder(_base(context), TinyData(), config, context)


STAGES: dict[str, tuple[ModuleType, Stage]] = {
    "velocity_finetuning": (velocity_finetuning, velocity),
    "robust_training": (robust_training, robust),
    "architecture_evolution": (architecture_evolution, evolution),
    "teacher_16": (step_distillation, distillation),
    "student_16": (step_distillation, distillation),
    "student_8": (step_distillation, distillation),
    "decoder_distillation": (decoder_distillation, decoder),
}


@dataclass
class Seen:
    """Of one training: weights at its start and after its last step, gradient of its first step, by parameter."""

    start: dict[str, Tensor]
    gradient: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0


@contextmanager
def seen(stage: ModuleType) -> Iterator[list[Seen]]:
    """The trainings of `stage` in this process while the block lasts."""
    found: list[Seen] = []
    original = stage.train  # type: ignore[attr-defined]

    def train(model: Any, loss: Any, **settings: Any) -> Any:
        parameters = dict(model.named_parameters())
        one = Seen(_copies(parameters))
        found.append(one)

        def before(*_: Any) -> None:
            one.gradient = one.gradient or {
                name: value.grad.clone() for name, value in parameters.items() if value.grad is not None
            }

        def after(*_: Any) -> None:
            one.weights, one.steps = _copies(parameters), one.steps + 1

        hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        try:
            return original(model, loss, **settings)
        finally:
            for hook in hooks:
                hook.remove()

    with patch.object(stage, "train", train):
        yield found


def _copies(parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


def run(
    name: str, folder: Path, processes: int, training: TrainingConfig = TRAINING
) -> tuple[Any, list[Seen]]:
    """The stage's record and its trainings."""
    module, stage = STAGES[name]
    torch.manual_seed(0)
    context = replace(stage_context(folder, name), processes=processes)
    with seen(module) as trainings:
        return stage(context, training), trainings


@dataclass(frozen=True)
class Difference:
    """Worst tensor of a stage's trainings; relative to the gradient's, the weights' and (where they start at zero) the
    update's norm.
    """

    gradient: float
    weights: float
    tensor: str


def difference(one: list[Seen], two: list[Seen]) -> Difference:
    """How far two runs of a stage are apart."""
    gradient, weights, worst = 0.0, 0.0, ""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.gradient.keys() == b.gradient.keys() and a.steps == b.steps
        total = float(torch.cat([value.flatten() for value in a.gradient.values()]).norm())
        apart = torch.cat([(a.gradient[name] - b.gradient[name]).flatten() for name in a.gradient])
        gradient = max(gradient, float(apart.norm()) / total)
        for name, value in a.weights.items():
            start = a.start[name]
            size = value - start if not bool(start.any()) else value
            if (
                float(size.norm())
                and (ratio := float((value - b.weights[name]).norm() / size.norm())) > weights
            ):
                weights, worst = ratio, name
    return Difference(gradient, weights, worst)
