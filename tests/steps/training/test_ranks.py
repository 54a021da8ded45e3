"""A training of two processes: as one alone, stopped from any of them, and never waiting for one that is gone."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import ConfigError, Interrupted, NonFiniteLossError, RankError
from steps.training.batch import Batch
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome

TRAINING = TrainingConfig(
    iterations=6, batch_size=4, accumulation=2, learning_rate=1e-2, checkpoint_interval_s=1e-6, log_interval=2
)


class Skipping(nn.Module):
    """Its second layer has no gradient in every second iteration."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.skips = False

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.first(x)
        return found if self.skips else self.second(found)


class Regression:
    """Squared error; `at` does something to the process of rank 1 at one iteration."""

    def __init__(self, at: int = -1, what: str = "") -> None:
        self.at, self.what = at, what

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        bare = getattr(model, "module", model)
        bare.skips = batch.iteration % 2 == 1
        x = torch.stack((batch.indices / 13.0, torch.cos(batch.indices.float())), 1)
        loss = (model(x) - x.flip(1)).square().mean()
        if batch.iteration == self.at and os.environ.get("RANK") == "1":
            if self.what == "nan":
                loss = loss * float("nan")
            else:
                os.kill(os.getpid(), signal.Signals[self.what])
        return {"loss": loss}


class Counting(Regression):
    """Counts the all-reduces of gradients in rank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.reduced = 0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if batch.iteration == 0 and batch.micro == 0 and batch.ranks > 1:
            model.register_comm_hook(None, self.count)  # type: ignore[operator]
        return super().__call__(model, batch)

    def count(self, group: Any, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        self.reduced += 1
        return allreduce_hook(group, bucket)


def run(folder: Path, processes: int, loss: Regression | None = None, iterations: int = 6) -> TrainingOutcome:
    training = TRAINING.model_copy(update={"iterations": iterations, "schedule": "constant"})
    return train(
        Skipping(), loss or Regression(), training=training, samples=13, seed=5, folder=folder,
        processes=processes,
    )  # fmt: skip


def apart(one: TrainingOutcome, two: TrainingOutcome) -> float:
    """Largest difference of a tensor over its norm."""
    other = two.model.state_dict()
    return max(
        float((value - other[name]).norm() / value.norm()) for name, value in one.model.state_dict().items()
    )


def test_two_ranks_train_as_one_and_go_on_from_each_other(tmp_path: Path) -> None:
    alone, loss = run(tmp_path / "alone", 1), Counting()
    run(tmp_path / "moved", 2, loss, iterations=2)
    assert loss.reduced == 2  # once a step, though a step has two micro-batches
    run(tmp_path / "moved", 1, iterations=4)
    moved = run(tmp_path / "moved", 2)
    assert apart(alone, moved) < 1e-5
    for ours, theirs in zip(moved.curve, alone.curve, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("SIGKILL", RankError, "rank 1 of 2 was killed by SIGKILL"),
        ("SIGTERM", Interrupted, "checkpoint"),
        ("nan", NonFiniteLossError, "loss is nan at iteration 3"),
    ],
)
def test_what_happens_to_one_rank_ends_all_and_the_training_goes_on(
    tmp_path: Path, what: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(tmp_path / "cut", 2, Regression(3, what))
    checkpoint = CheckpointFolder(tmp_path / "cut").load_latest()
    assert checkpoint is not None and checkpoint.iteration >= 3
    assert not list((tmp_path / "cut").glob(".ranks-*"))
    assert apart(run(tmp_path / "alone", 1), run(tmp_path / "cut", 2)) < 1e-5


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"divisible by compute\.processes = 3, found 4; the nearest: 3 or 6"
    ):
        run(tmp_path, 3)
    with pytest.raises(InvalidConfig, match=r"velocity_finetuning\.training\.batch_size .* 30 or 33"):
        parse_config({"compute": {"processes": 3}})


def test_a_loss_that_cannot_be_sent_is_said(tmp_path: Path) -> None:
    loss = Regression()
    loss.what = lambda: None  # type: ignore[assignment]
    with pytest.raises(RankError, match="rank 1 failed: .*pickle"):
        run(tmp_path, 2, loss)
