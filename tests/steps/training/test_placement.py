"""Where networks lie and how they are called changes no result, and a training goes on in every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.stage_configs import TrainingConfig
from steps.diffusion.losses import DistillationLoss, Sampling, VelocityLoss
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import Interrupted
from steps.files.progress import NullProgress
from steps.models.stored import save_model
from steps.training import placement
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.placement import frozen, set_deterministic
from steps.training.selection import held_out_loss
from steps.unet.conversion import as_evolved
from tests.factories import stage_context, tiny_data, tiny_inputs, tiny_unet, two_level_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE
from tests.steps.training.test_loop import StopAfter

CPU = torch.device("cpu")
PLAIN = TrainingConfig(
    iterations=4,
    batch_size=2,
    learning_rate=1e-3,
    log_interval=1,
    checkpoint_interval_s=1e-6,
    held_out_checks=1,
)
SAMPLING = Sampling(tiny_data(), NoiseSchedule.from_config(SD_SCHEDULE), 0.1, CPU)


def trained(
    folder: Path, training: TrainingConfig = PLAIN, progress: NullProgress | None = None
) -> TrainingOutcome:
    """A distillation of the smallest UNet, half of its iterations guided."""
    teacher = frozen(two_level_unet(1), CPU, training.precision)
    loss = DistillationLoss(teacher, SAMPLING, 2, 0.5, (2.0, 14.0), 0.2)
    student = two_level_unet().requires_grad_(True)
    check = held_out_loss("error of v", VelocityLoss(teacher, SAMPLING, 0.0, 1.0), 8, seed=0)
    return train(
        student, loss, training=training, samples=16, seed=3, folder=folder, progress=progress, held_out=check
    )


def assert_equal(one: TrainingOutcome, other: TrainingOutcome) -> None:
    others = other.model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in one.model.state_dict().items())
    assert one.curve == other.curve and one.selection == other.selection


def test_channels_last_goes_on_bit_equal_and_hands_on_plain_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(tmp_path / "plain")
    monkeypatch.setattr(placement, "memory_format", lambda _: torch.channels_last)
    straight = trained(tmp_path / "straight")
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", progress=StopAfter(2))
    assert_equal(straight, trained(tmp_path / "cut"))
    for name, value in straight.model.state_dict().items():
        assert value.is_contiguous(), name  # safetensors takes no others
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=1e-3, atol=1e-5)
    save_model(stage_context(tmp_path, "any").store, straight.model, schema="diffusers.UNet2DConditionModel")


def test_convolutions_are_laid_out_as_the_device_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.memory_format(torch.device("cuda")) == torch.channels_last
    monkeypatch.setattr(placement, "memory_format", lambda _: torch.channels_last)
    weight = placement.placed(nn.Conv2d(4, 8, 3), CPU).weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("kind", [lambda unet: unet, as_evolved], ids=["whole", "evolved"])
def test_a_frozen_teacher_in_bf16_gives_what_autocast_gives(kind: Any) -> None:
    inputs = tiny_inputs()
    plain, half = (kind(tiny_unet()).eval() for _ in range(2))
    frozen(half, CPU, "bf16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(*inputs, return_dict=False)[0], half(*inputs, return_dict=False)[0])
    sizes = [sum(p.nbytes for p in unet.parameters()) for unet in (plain, half)]
    assert sizes[1] < 0.55 * sizes[0]
    assert {p.dtype for p in frozen(tiny_unet(), CPU, "fp32").parameters()} == {torch.float32}


def test_bf16_trains_with_such_a_teacher(tmp_path: Path) -> None:
    outcome = trained(tmp_path, PLAIN.model_copy(update={"precision": "bf16"}))
    assert {p.dtype for p in outcome.model.parameters()} == {torch.float32}


@pytest.mark.long  # 14 s of tracing
def test_compiled_networks_train_alike_and_only_the_steps_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[bool] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(placement, "_BACKEND", backend)
    plain, fast = (
        trained(tmp_path / "plain"),
        trained(tmp_path / "fast", PLAIN.model_copy(update={"compile": True})),
    )
    assert set(graphs) == {True, False}  # student and teacher
    assert_equal(plain, fast)
    assert type(fast.model) is type(plain.model)


@pytest.mark.parametrize("section", ["robust_training", "architecture_evolution"])
def test_a_training_that_skips_units_is_not_compiled(section: str) -> None:
    compiled = {"training": {"compile": True}}
    with pytest.raises(
        InvalidConfig, match=r"training.compile must be false where units are skipped, found true"
    ):
        parse_config({section: compiled})
    assert parse_config({section: compiled | {"drop_probability": 0.0}})


def test_deterministic_algorithms_fill_nothing() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    finally:
        torch.use_deterministic_algorithms(before)
