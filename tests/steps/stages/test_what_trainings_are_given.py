"""Every stage that trains: what it really hands to loss and optimizer, and what it hands on."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts_schema.distillation_configs import (
    DecoderDistillationConfig,
    DistillationStageConfig,
    StepDistillationConfig,
)
from artifacts_schema.stage_configs import RobustTrainingConfig, TrainingConfig, VelocityFinetuningConfig
from artifacts_schema.training import TrainingRecord
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.stages import decoder_distillation, robust_training, step_distillation, velocity_finetuning
from steps.unet.conversion import as_evolved
from steps.unet.evolved import EvolvedUNet
from tests.factories import LATENT_SHAPE, stage_context, two_level_base
from tests.steps.diffusion.fakes import FakeData
from tests.steps.stages.watching import Watched, watched

SCHEMA = "diffusers.UNet2DConditionModel"
DROPOUT = 0.37
SHARED = StepDistillationConfig(
    cfg_probability=0.5,
    cfg_range=(3.0, 3.5),
    gamma=0.3,
    caption_dropout=DROPOUT,
    validation_captions=4,
    validation_guidance_scale=2.5,
)
TRAINING = TrainingConfig(
    iterations=12,
    batch_size=4,
    learning_rate=1e-3,
    warmup_iterations=3,
    final_learning_rate_fraction=0.2,
    gradient_clip=1e-3,
    weight_decay=0.02,
    held_out_checks=3,
)


class Data(FakeData):
    """Remembers with which probability captions were to be dropped."""

    def __init__(self) -> None:
        super().__init__(samples=16, shape=LATENT_SHAPE)
        self.dropped: dict[str, set[float]] = {"train": set(), "validation": set()}

    def training_embeddings(
        self, split: str, indices: Tensor, *, seed: int, iteration: int, drop_probability: float
    ) -> Tensor:
        self.dropped[split].add(drop_probability)
        return super().training_embeddings(
            split, indices, seed=seed, iteration=iteration, drop_probability=drop_probability
        )


def velocity(base: BaseModel, data: Data, training: TrainingConfig, context: StageContext) -> TrainingRecord:
    config = VelocityFinetuningConfig(training=training, caption_dropout=DROPOUT)
    return velocity_finetuning.finetune(base, data, config, context)


def robust(base: BaseModel, data: Data, training: TrainingConfig, context: StageContext) -> TrainingRecord:
    weights = save_model(context.store, base.unet, schema=SCHEMA)
    config = RobustTrainingConfig(training=training, drop_probability=0.5, caption_dropout=DROPOUT)
    return robust_training.train_robust(base, weights, data, config, context)


def distillation(
    steps: int, *, cfg_aware: bool, shared: StepDistillationConfig = SHARED
) -> Callable[..., Any]:
    def run(base: BaseModel, data: Data, training: TrainingConfig, context: StageContext) -> TrainingRecord:
        return step_distillation.distil_weights(
            base,
            save_model(context.store, base.unet, schema=SCHEMA),
            save_model(context.store, EvolvedUNet.from_unet(base.unet), schema="snapfusion.EvolvedUNet"),
            data,
            shared=shared,
            config=DistillationStageConfig(training=training),
            context=context,
            student_steps=steps,
            cfg_aware=cfg_aware,
        )

    return run


def decoder(base: BaseModel, data: Data, training: TrainingConfig, context: StageContext) -> TrainingRecord:
    config = DecoderDistillationConfig(pool_size=24, ddim_steps=2, training=training)
    return decoder_distillation.distil_decoder(base, data, config, context)


STAGES: dict[str, tuple[ModuleType, Callable[..., TrainingRecord]]] = {
    "velocity_finetuning": (velocity_finetuning, velocity),
    "robust_training": (robust_training, robust),
    "teacher_16": (step_distillation, distillation(4, cfg_aware=True)),
    "student_16": (step_distillation, distillation(4, cfg_aware=False)),
    "student_8": (step_distillation, distillation(2, cfg_aware=True)),
    "decoder_distillation": (decoder_distillation, decoder),
}


def run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[TrainingRecord, Watched, Data, StageContext]:
    module, stage = STAGES[name]
    data, context = Data(), stage_context(folder, name)
    with watched(monkeypatch, module) as seen:
        record = stage(two_level_base(folder / "base"), data, TRAINING.model_copy(update=changes), context)
    return record, seen, data, context


@pytest.mark.parametrize("name", STAGES)
def test_rates_warm_up_and_fall_gradients_are_clipped_captions_dropped_and_the_best_state_handed_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, seen, data, context = run(name, tmp_path, monkeypatch)
    # Linear over three iterations, then half a cosine from 1 to 0.2 over the nine that are left.
    warm = [1 / 4, 2 / 4, 3 / 4]
    cosine = [0.6 + 0.4 * math.cos(math.pi * k / 9) for k in range(9)]
    assert seen.rates == pytest.approx([1e-3 * factor for factor in warm + cosine])
    assert seen.norms == pytest.approx([1e-3] * 12, rel=1e-3)  # every gradient here is larger than that
    if name != "decoder_distillation":
        # A guided iteration keeps its captions.
        assert data.dropped["train"] - {0.0} == {DROPOUT}
        assert (0.0 in data.dropped["train"]) == (name in ("teacher_16", "student_8"))
    if name in ("velocity_finetuning", "robust_training"):
        assert data.dropped["validation"] == {DROPOUT}
    check_selection(record, seen, context)


def check_selection(record: TrainingRecord, seen: Watched, context: StageContext) -> None:
    """The weights of the record have the held-out number that it names, which is the best of its candidates."""
    selection = record.selection
    assert selection is not None
    assert [candidate.iteration for candidate in selection.candidates] == [0, 4, 8, 12]
    assert selection.at(selection.chosen) == min(candidate.held_out for candidate in selection.candidates)
    handed_on = load_model(context.store, record.weights).eval()
    if record.stage == "robust_training":
        handed_on = as_evolved(handed_on)
    with torch.no_grad():
        found = seen.settings["held_out"].loss(handed_on)
    assert found == pytest.approx(selection.at(selection.chosen), rel=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_a_training_that_harms_hands_on_its_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, seen, _, context = run(
        name, tmp_path, monkeypatch, learning_rate=1.0, gradient_clip=1e3, warmup_iterations=0
    )
    check_selection(record, seen, context)
    assert record.selection is not None
    assert record.selection.chosen == 0


@pytest.mark.parametrize("name", STAGES)
def test_four_times_two_gives_the_gradient_of_eight(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws, coin and mask belong to the optimizer step. gamma's ratio does not: see DistillationLoss."""
    shared = SHARED.model_copy(update={"gamma": 0.0, "cfg_probability": 1.0})
    plain = {"teacher_16": (4, True), "student_16": (4, False), "student_8": (2, True)}
    if name in plain:
        steps, cfg_aware = plain[name]
        stage = distillation(steps, cfg_aware=cfg_aware, shared=shared)
        monkeypatch.setitem(STAGES, name, (step_distillation, stage))
    once = {"iterations": 1, "gradient_clip": 1e9, "held_out_checks": 1}
    _, two, *_ = run(name, tmp_path / "two", monkeypatch, accumulation=2, **once)
    _, one, *_ = run(name, tmp_path / "one", monkeypatch, batch_size=8, **once)
    assert two.first_gradient.keys() == one.first_gradient.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.first_gradient.values())
    for key, gradient in one.first_gradient.items():
        torch.testing.assert_close(two.first_gradient[key], gradient, rtol=1e-3, atol=1e-5 * largest, msg=key)


def test_every_micro_batch_of_a_step_has_the_same_coin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, *_ = run("teacher_16", tmp_path, monkeypatch, accumulation=4, batch_size=1, log_interval=1)
    assert {row["cfg"] for row in record.curve} == {0.0, 1.0}  # means over a step


@pytest.mark.parametrize("name", ["teacher_16", "student_16", "student_8"])
def test_a_distillation_takes_its_settings_and_its_teacher(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    original = step_distillation.sample_latents

    def sample(unet: Any, schedule: Any, **settings: Any) -> Tensor:
        drawn.append({"unet": unet, **settings})
        return original(unet, schedule, **settings)

    monkeypatch.setattr(step_distillation, "sample_latents", sample)
    _, seen, *_ = run(name, tmp_path, monkeypatch)
    steps = 2 if name == "student_8" else 4
    loss = seen.loss
    assert (loss.cfg_range, loss.gamma, loss.student_steps) == ((3.0, 3.5), 0.3, steps)
    assert loss.cfg_probability == (0.0 if name == "student_16" else 0.5)
    assert not isinstance(loss.teacher, EvolvedUNet)  # the student is one
    assert not any(parameter.requires_grad for parameter in loss.teacher.parameters())
    assert (loss.sampling.caption_dropout, loss.sampling.split) == (DROPOUT, "train")
    # The teacher once in twice as many steps, then the student at the start and three times more.
    assert [entry["unet"] is loss.teacher for entry in drawn] == [True] + [False] * 4
    assert [entry["steps"] for entry in drawn] == [2 * steps] + [steps] * 4
    expected = Data().embeddings("validation", torch.tensor([0, 4, 8, 12]))
    for entry in drawn:
        assert (entry["guidance_scale"], entry["prediction_type"]) == (2.5, "v_prediction")
        assert torch.equal(entry["noise"], drawn[0]["noise"])
        assert torch.equal(entry["embeddings"], expected)


def test_robust_training_skips_more_and_more_units_the_same_in_every_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[frozenset[str]] = []
    checked: set[frozenset[str]] = set()
    original = EvolvedUNet.forward

    def forward(unet: EvolvedUNet, *arguments: Any, **settings: Any) -> Any:
        if torch.is_grad_enabled():
            masks.append(unet.skipped)
        else:
            checked.add(unet.skipped)
        return original(unet, *arguments, **settings)

    monkeypatch.setattr(EvolvedUNet, "forward", forward)
    base, context = two_level_base(tmp_path / "base"), stage_context(tmp_path, "robust_training")
    config = RobustTrainingConfig(
        training=TRAINING.model_copy(update={"iterations": 40, "accumulation": 2, "batch_size": 1}),
        drop_probability=1.0,
        ramp_fraction=0.5,
    )
    weights = save_model(context.store, base.unet, schema=SCHEMA)
    robust_training.train_robust(base, weights, Data(), config, context)
    assert masks[::2] == masks[1::2]
    shares = [len(mask) / len(masks[-1]) for mask in masks[::2]]
    everything = EvolvedUNet.from_unet(base.unet)
    assert shares[0] == 0.0
    assert shares[20:] == [1.0] * 20
    assert masks[-1] == skippable(everything)
    assert checked == {masks[-1]}  # held out at the final probability
    # Linear up to there: a probability of i / 20 in iteration i, within four standard errors over all of them.
    assert sum(shares[:20]) / 20 == pytest.approx(sum(i / 20 for i in range(20)) / 20, abs=0.2)
    assert sum(shares[:10]) < sum(shares[10:20])


def skippable(unet: EvolvedUNet) -> frozenset[str]:
    """Blocks of all units."""
    from steps.unet.architecture import list_units

    return frozenset(block for unit in list_units(unet.spec, unet.geometry()) for block in unit.blocks)
