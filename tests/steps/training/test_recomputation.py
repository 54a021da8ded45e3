"""Less memory, the same training: recomputed blocks and an average on the host change no bit on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts_schema.stage_configs import TrainingConfig
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import ConfigError, Interrupted
from steps.files.progress import NullProgress
from steps.training.ema import ExponentialMovingAverage
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.recomputation import set_recomputation
from steps.unet.conversion import as_evolved
from steps.unet.dropping import SkippingLoss
from tests.factories import tiny_data, two_level_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE
from tests.steps.training.test_loop import StopAfter

PLAIN = TrainingConfig(
    iterations=4, batch_size=2, learning_rate=1e-3, log_interval=1, checkpoint_interval_s=1e-6
)
SAVING = PLAIN.model_copy(update={"gradient_checkpointing": True, "ema_on_host": True})


def trained(folder: Path, training: TrainingConfig, progress: NullProgress | None = None) -> TrainingOutcome:
    """A robust training of the smallest UNet: half of its units are skipped."""
    sampling = Sampling(tiny_data(), NoiseSchedule.from_config(SD_SCHEDULE), 0.1, torch.device("cpu"))
    unet = as_evolved(two_level_unet()).requires_grad_(True)
    loss = SkippingLoss(sampling, 0.5)
    return train(unet, loss, training=training, samples=16, seed=3, folder=folder, progress=progress)


def equal(one: TrainingOutcome, other: TrainingOutcome) -> bool:
    others = other.model.state_dict()
    return all(torch.equal(value, others[name]) for name, value in one.model.state_dict().items())


def test_the_same_weights_with_less_memory_and_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed: set[str] = set()
    real = torch.utils.checkpoint.checkpoint

    def watched(function: Any, *args: Any, **kwargs: Any) -> Any:
        recomputed.add(type(getattr(function, "__self__", function)).__name__)
        return real(function, *args, **kwargs)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", watched)
    plain = trained(tmp_path / "plain", PLAIN)
    assert not recomputed
    saving = trained(tmp_path / "saving", SAVING)
    # Blocks of both kinds: ResNets by the evolved UNet, attentions by themselves.
    assert {"ResnetBlock2D", "BasicTransformerBlock"} <= recomputed
    assert equal(plain, saving) and plain.curve == saving.curve
    assert not saving.model.is_gradient_checkpointing  # what draws pictures afterwards does not recompute
    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", SAVING, StopAfter(2))
    assert equal(plain, trained(tmp_path / "stopped", SAVING))


def test_what_cannot_recompute_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing is set, but Linear cannot recompute"):
        set_recomputation(nn.Linear(1, 1), True)
    set_recomputation(nn.Linear(1, 1), False)


def test_an_average_on_the_host_lies_there_and_is_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    here, there = (ExponentialMovingAverage(model, 0.9, on_host=on_host) for on_host in (False, True))
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(1.0)
        here.update(model)
        there.update(model)
    assert there.device == torch.device("cpu") and here.device is None
    assert all(torch.equal(here.shadow[name], there.shadow[name]) for name in here.shadow)
    assert there.shadow["weight"].data_ptr() != model.weight.data_ptr()


@pytest.mark.gpu
def test_an_average_on_the_host_follows_weights_on_a_gpu() -> None:
    model = nn.Linear(3, 2).cuda()
    average = ExponentialMovingAverage(model, 0.9, on_host=True)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model)
    assert average.shadow["weight"].device.type == "cpu"
    with average.applied(model):
        assert torch.equal(model.weight.cpu(), average.shadow["weight"])
