"""The averaged weights follow their formula, and the optimizer is given the learning rate of its schedule."""

from pathlib import Path

import pytest
import torch
from torch import nn

from artifacts_schema.stage_configs import TrainingConfig
from steps.training.batch import Batch
from steps.training.ema import ExponentialMovingAverage
from steps.training.loop import train
from steps.training.pace import learning_rate_factor


def test_the_average_is_decay_times_itself_and_the_rest_of_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    values, decays = [4.0, 8.0, -2.0], [1 / 10, 2 / 11, 3 / 12]
    nn.init.constant_(model.weight, 1.0)
    ema, expected = ExponentialMovingAverage(model, 0.999), 1.0
    for value, decay in zip(values, decays, strict=True):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        expected = decay * expected + (1 - decay) * value
    assert ema.shadow["weight"].item() == pytest.approx(expected)


def test_the_optimizer_is_given_the_rate_of_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *arguments: object) -> object:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments)  # type: ignore[arg-type]

    def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": model(torch.ones(2, 1)).square().mean()}

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    config = TrainingConfig(iterations=8, batch_size=2, learning_rate=0.01, warmup_iterations=3)
    train(nn.Linear(1, 1), loss, training=config, samples=8, seed=0, folder=tmp_path)
    assert seen == [pytest.approx(0.01 * learning_rate_factor(i, config)) for i in range(8)]
    assert len(set(seen)) > 4
