"""Every stage that trains, cut off twice, ends bit for bit as one that never was; so does an evaluation that is done again.

The global generators are seeded otherwise for each attempt: nothing may depend on them.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.distillation_configs import (
    DecoderDistillationConfig,
    DistillationStageConfig,
    StepDistillationConfig,
)
from artifacts_schema.result_configs import EvaluationConfig
from artifacts_schema.stage_configs import RobustTrainingConfig, TrainingConfig, VelocityFinetuningConfig
from artifacts_schema.training import TrainingRecord
from steps.evaluation import bench as bench_module
from steps.files.progress import NullProgress, Progress
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.stages import (
    decoder_distillation,
    evaluation,
    guidance_selection,
    real_pictures,
    robust_training,
    step_distillation,
    velocity_finetuning,
)
from steps.training.checkpoint import Checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from steps.unet.evolved import EvolvedUNet
from tests.factories import stage_context, tiny_data, two_level_base
from tests.steps.stages.test_real_pictures import Pictures, brightness, stand_in

TRAINING = TrainingConfig(
    iterations=8,
    batch_size=4,
    accumulation=2,
    log_interval=3,
    learning_rate=1e-3,
    warmup_iterations=2,
    checkpoint_interval_s=1e-6,
)
SCHEMA = "diffusers.UNet2DConditionModel"
Stage = Callable[[BaseModel, StageContext], TrainingRecord]


class Cut(NullProgress):
    """Cuts off the piece of work of this description once so many units of it are done."""

    def __init__(self, description: str, done: int) -> None:
        self.description, self.done, self.is_on = description, done, False

    def start(self, description: str, total: int) -> None:
        self.is_on = description.startswith(self.description)

    def update(self, done: int, **metrics: float) -> None:
        if self.is_on and done == self.done:
            raise KeyboardInterrupt


def velocity(base: BaseModel, context: StageContext) -> TrainingRecord:
    return velocity_finetuning.finetune(
        base, tiny_data(), VelocityFinetuningConfig(training=TRAINING), context
    )


def robust(base: BaseModel, context: StageContext) -> TrainingRecord:
    weights = save_model(context.store, base.unet, schema=SCHEMA)
    config = RobustTrainingConfig(training=TRAINING, drop_probability=0.5)
    return robust_training.train_robust(base, weights, tiny_data(), config, context)


def distillation(steps: int, *, cfg_aware: bool) -> Stage:
    def run(base: BaseModel, context: StageContext) -> TrainingRecord:
        return step_distillation.distil_weights(
            base,
            save_model(context.store, base.unet, schema=SCHEMA),
            save_model(context.store, EvolvedUNet.from_unet(base.unet), schema="snapfusion.EvolvedUNet"),
            tiny_data(),
            shared=StepDistillationConfig(cfg_probability=0.5, validation_captions=4),
            config=DistillationStageConfig(training=TRAINING),
            context=context,
            student_steps=steps,
            cfg_aware=cfg_aware,
        )

    return run


def decoder(base: BaseModel, context: StageContext) -> TrainingRecord:
    config = DecoderDistillationConfig(pool_size=24, ddim_steps=2, training=TRAINING)
    return decoder_distillation.distil_decoder(base, tiny_data(), config, context)


STAGES: dict[str, Stage] = {
    "velocity_finetuning": velocity,
    "robust_training": robust,
    "teacher_16": distillation(16, cfg_aware=True),
    "student_16": distillation(16, cfg_aware=False),
    "student_8": distillation(8, cfg_aware=True),
    "decoder_distillation": decoder,
}


def attempt(name: str, folder: Path, seed: int, progress: Progress | None = None) -> TrainingRecord:
    """One attempt at a stage, in a process whose global generators stand elsewhere."""
    base = two_level_base(folder / "base")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is the point
    torch.manual_seed(seed)
    context = stage_context(folder, name)
    return STAGES[name](base, replace(context, progress=progress or NullProgress()))


def last_checkpoint(name: str, folder: Path) -> Checkpoint:
    found = CheckpointFolder(stage_context(folder, name).work / "checkpoints").load_latest()
    assert found is not None
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_was_cut_off_twice_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    straight = attempt(name, tmp_path / "straight", seed=1)
    for seed, done in ((2, 2), (3, 5)):  # within the warm-up and the first interval; within the second
        with pytest.raises(KeyboardInterrupt):
            attempt(name, tmp_path / "cut", seed, Cut(name, done))
    continued = attempt(name, tmp_path / "cut", seed=4)
    assert continued.weights.sha256 == straight.weights.sha256
    assert continued.curve == straight.curve
    assert continued.identity() == straight.identity()
    first, second = (last_checkpoint(name, tmp_path / which) for which in ("straight", "cut"))
    assert {key.partition(".")[0] for key in first.tensors} == {"model", "ema", "best", "optimizer"}
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(value, second.tensors[key]) for key, value in first.tensors.items())
    assert (first.iteration, first.state) == (second.iteration, second.state)
    assert first.state["ema_updates"] == first.iteration == TRAINING.iterations


def test_an_evaluation_that_was_cut_off_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(bench_module, "load_features", lambda name, inception, device: brightness)
    config = SnapFusionConfig(
        evaluation=EvaluationConfig(
            pictures=6, validation_pictures=6, grid_pictures=2, guidance_scales=(1.0, 3.0)
        ),
        step_distillation=StepDistillationConfig(intermediate_steps=4, final_steps=2),
    )

    def run(folder: Path, seed: int, progress: Progress | None = None) -> Any:
        base = two_level_base(folder / "base")
        torch.manual_seed(seed)
        inputs = stand_in(Pictures(), base=base)
        context = replace(
            stage_context(folder, "evaluation"), label="student_8", progress=progress or NullProgress()
        )
        student = save_model(context.store, base.unet, schema=SCHEMA)
        earlier: dict[str, Any] = {"unet": student, "decoder": None}
        inputs.earlier = earlier.__getitem__
        earlier["real_pictures"] = real_pictures.run(inputs, config, context)
        earlier["guidance"] = guidance_selection.run(inputs, config, context)
        return evaluation.run(inputs, config, context)

    straight = run(tmp_path / "straight", 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 2, Cut("guidance", 12))  # the second scale is drawn, but not measured
    again = run(tmp_path / "cut", 3)
    assert again.point == straight.point
    assert again.identity() == straight.identity()
