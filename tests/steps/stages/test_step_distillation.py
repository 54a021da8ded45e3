"""teacher_16, student_16, student_8: one implementation, any number of steps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts_schema.config import parse_config
from artifacts_schema.distillation_configs import DistillationStageConfig, StepDistillationConfig
from artifacts_schema.references import WeightsRef
from artifacts_schema.stage_configs import TrainingConfig
from artifacts_schema.training import TrainingRecord
from steps.models.stored import load_model, save_model
from steps.stages import step_distillation
from steps.stages.step_distillation import distil_weights
from steps.stages.table import STAGES
from steps.unet.evolved import EvolvedUNet
from tests.factories import stage_context, tiny_data, two_level_base, two_level_unet

SHARED = StepDistillationConfig(cfg_probability=0.5, validation_captions=4)
QUICK = DistillationStageConfig(training=TrainingConfig(iterations=4, batch_size=4, log_interval=2))


def distil(
    folder: Path, *, stage: str = "teacher_16", steps: int = 16, cfg_aware: bool = True, **changes: Any
) -> tuple[TrainingRecord, WeightsRef, Any]:
    base = two_level_base(folder / "base")
    context = stage_context(folder, stage)
    teacher = save_model(context.store, base.unet, schema="diffusers.UNet2DConditionModel")
    record = distil_weights(
        base,
        changes.get("teacher", teacher),
        changes.get("student", teacher),
        tiny_data(),
        shared=changes.get("shared", SHARED),
        config=changes.get("config", QUICK),
        context=context,
        student_steps=steps,
        cfg_aware=cfg_aware,
    )
    return record, teacher, context


@pytest.mark.parametrize("steps", [16, 8, 4, 2, 1])
def test_any_halving_works(tmp_path: Path, steps: int) -> None:
    record, teacher, context = distil(tmp_path, steps=steps)
    assert record.stage == "teacher_16"
    assert record.grid_steps == steps
    assert record.parents == (teacher.identity(), teacher.identity())
    assert record.weights.parents == record.parents
    assert record.prediction_type == "v_prediction"
    assert {"loss", "distillation", "original", "cfg"} <= set(record.curve[0])
    assert set(record.metrics) == {"teacher_mse_start", "teacher_mse"}
    load_model(context.store, record.weights)


def test_the_vanilla_loss_is_never_guided(tmp_path: Path) -> None:
    config = DistillationStageConfig(training=TrainingConfig(iterations=8, batch_size=1, log_interval=8))
    vanilla, *_ = distil(tmp_path / "vanilla", cfg_aware=False, config=config)
    aware, *_ = distil(tmp_path / "aware", cfg_aware=True, config=config)
    assert vanilla.curve[0]["cfg"] == 0.0
    assert 0.0 < aware.curve[0]["cfg"] < 1.0


def test_a_student_of_another_architecture_keeps_it(tmp_path: Path) -> None:
    context = stage_context(tmp_path, "student_8")
    unet = two_level_unet()
    student = save_model(context.store, EvolvedUNet.from_unet(unet), schema="snapfusion.EvolvedUNet")
    record, *_ = distil(tmp_path, stage="student_8", steps=8, student=student)
    assert record.weights.schema_id == "snapfusion.EvolvedUNet"
    assert record.parents[1] == student.identity()
    assert isinstance(load_model(context.store, record.weights), EvolvedUNet)


def test_the_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    shared = StepDistillationConfig(validation_captions=16, validation_guidance_scale=1.0, gamma=0.0)
    training = TrainingConfig(
        iterations=40, batch_size=8, learning_rate=2e-3, warmup_iterations=2, log_interval=20
    )
    config = DistillationStageConfig(training=training)
    record, *_ = distil(tmp_path, steps=1, cfg_aware=False, shared=shared, config=config)
    assert record.metrics["teacher_mse"] < 0.9 * record.metrics["teacher_mse_start"]
    assert record.curve[-1]["distillation"] < record.curve[0]["distillation"]


def test_the_metrics_are_those_of_the_start_and_of_what_is_handed_on(tmp_path: Path) -> None:
    record, *_ = distil(tmp_path)
    assert record.selection is not None
    values = {candidate.iteration: candidate.held_out for candidate in record.selection.candidates}
    assert record.metrics == {"teacher_mse_start": values[0], "teacher_mse": min(values.values())}


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, *_ = distil(tmp_path / "a")
    torch.manual_seed(99)
    second, *_ = distil(tmp_path / "b")
    assert first.weights.sha256 == second.weights.sha256
    assert first.identity() == second.identity()


@pytest.mark.parametrize(
    ("stage", "teacher", "expected"),
    [
        ("student_16", "architecture_evolution", "teacher"),
        ("student_16", "velocity_finetuning", "full"),
        ("student_8", "velocity_finetuning", "teacher"),
    ],
)
def test_student_16_may_learn_from_the_full_unet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, teacher: str, expected: str
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(step_distillation, "distil_weights", lambda *arguments, **_: given.extend(arguments))
    inputs: Any = SimpleNamespace(base=None, data=None, earlier=lambda name: name)
    config = parse_config({"student_16": {"teacher": teacher}})
    step_distillation.run(inputs, config, stage_context(tmp_path, stage))
    assert given[1:3] == [expected, "student"]
    assert STAGES[stage].after.get("full") == (
        "velocity_finetuning.weights" if stage == "student_16" else None
    )


def test_every_student_has_half_the_steps_of_the_one_before() -> None:
    shared = StepDistillationConfig(intermediate_steps=16, final_steps=8)
    names = ("teacher_16", "student_16", "student_8", "student_4", "student_2")
    assert [step_distillation._steps(name, shared) for name in names] == [16, 16, 8, 4, 2]
