"""A training hands on its best state by a held-out number, its start included, and says which."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import Interrupted, NonFiniteLossError
from steps.training.batch import Batch
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.loop import train
from steps.training.outcome import TrainingOutcome
from steps.training.selection import HeldOut, held_out_loss
from tests.steps.training.test_loop import assert_equal, model, regression

CONFIG = TrainingConfig(
    iterations=40, batch_size=4, learning_rate=3e-2, held_out_checks=4, checkpoint_interval_s=1e6
)
SCRIPTS = {
    "the start": [1.0, 2.0, 3.0, 1.0, 4.0],
    "the middle": [3.0, 2.0, 0.5, 0.5, 2.0],
    "the end": [5, 4, 3, 2, 1],
}


class Scripted:
    """Held-out numbers from a list, with the weights that each was asked for."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.seen = values, []

    def __call__(self, net: nn.Module) -> float:
        assert not net.training
        assert not torch.is_grad_enabled()
        self.seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return float(self.values[len(self.seen) - 1])


def run(
    folder: Path, loss: Callable[[nn.Module], float] | None, config: TrainingConfig = CONFIG
) -> TrainingOutcome:
    held_out = HeldOut("scripted", 7, loss) if loss is not None else None
    return train(model(), regression, training=config, samples=13, seed=5, folder=folder, held_out=held_out)


@pytest.mark.parametrize("which", SCRIPTS)
def test_the_best_state_is_handed_on_and_named(tmp_path: Path, which: str) -> None:
    scripted = Scripted(SCRIPTS[which])
    outcome = run(tmp_path, scripted)
    chosen = SCRIPTS[which].index(min(SCRIPTS[which]))  # of equals the first
    assert outcome.selection is not None
    assert [(c.iteration, c.held_out) for c in outcome.selection.candidates] == list(
        zip([0, 10, 20, 30, 40], SCRIPTS[which], strict=True)
    )
    assert (outcome.selection.chosen, outcome.selection.measure, outcome.selection.samples) == (
        10 * chosen,
        "scripted",
        7,
    )
    assert outcome.selection.at(10 * chosen) == min(SCRIPTS[which])
    for name, value in outcome.model.state_dict().items():
        assert torch.equal(value, scripted.seen[chosen][name]), name
    assert all(not torch.equal(a["0.weight"], b["0.weight"]) for a, b in itertools.pairwise(scripted.seen))
    assert all(torch.equal(value, scripted.seen[0][name]) for name, value in model().state_dict().items())


def test_what_is_held_out_are_the_ema_weights_and_the_training_does_not_notice(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"checkpoint_interval_s": 1e-6})
    scripted = Scripted(SCRIPTS["the end"])
    run(tmp_path / "checked", scripted, config)
    run(tmp_path / "unchecked", None, config)
    checked, unchecked = (
        CheckpointFolder(tmp_path / name).load_latest() for name in ("checked", "unchecked")
    )
    assert checked is not None
    assert unchecked is not None
    for name, value in unchecked.tensors.items():
        assert torch.equal(value, checked.tensors[name]), name
    assert not any(name.startswith("best.") for name in unchecked.tensors)
    for name, value in scripted.seen[-1].items():
        assert torch.equal(value, checked.tensors[f"ema.{name}"])
        assert not torch.equal(value, checked.tensors[f"model.{name}"])


@pytest.mark.parametrize("number", [0, 2, 4], ids=["start", "middle", "end"])
def test_a_training_stopped_within_a_check_chooses_as_one_that_was_not(
    tmp_path: Path, number: int, signals_are_heard: None
) -> None:
    def far(net: nn.Module) -> float:
        return float((net(torch.ones(1, 4)) - net(torch.zeros(1, 4))).square())

    calls = []

    def stopped(net: nn.Module) -> float:
        calls.append(1)
        if len(calls) == number + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return far(net)  # its first forward pass is not begun any more

    with pytest.raises(Interrupted, match=f"iteration {10 * number};"):
        run(tmp_path / "resumed", stopped)
    found = CheckpointFolder(tmp_path / "resumed").load_latest()
    assert found is not None
    assert [at for at, _ in found.state["candidates"]] == [10 * n for n in range(number)]
    straight, resumed = run(tmp_path / "straight", far), run(tmp_path / "resumed", far)
    assert_equal(straight, resumed)
    assert straight.selection == resumed.selection
    assert straight.selection is not None
    assert straight.selection.chosen == 10  # neither the start nor the end


def test_a_training_of_no_iterations_hands_on_its_start(tmp_path: Path) -> None:
    outcome = run(tmp_path, Scripted([2.0]), CONFIG.model_copy(update={"iterations": 0}))
    assert outcome.selection is not None
    assert [(c.iteration, c.held_out) for c in outcome.selection.candidates] == [(0, 2.0)]


def test_fewer_iterations_than_checks_are_each_checked_once(tmp_path: Path) -> None:
    outcome = run(tmp_path, Scripted([4.0, 3.0, 2.0]), CONFIG.model_copy(update={"iterations": 2}))
    assert outcome.selection is not None
    assert [candidate.iteration for candidate in outcome.selection.candidates] == [0, 1, 2]


def test_a_held_out_number_that_is_none_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="held-out loss is nan after 10 iterations"):
        run(tmp_path, Scripted([1.0, float("nan")]))


def test_a_held_out_loss_is_the_mean_over_the_same_samples_and_draws() -> None:
    batches: list[Batch] = []

    def loss(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batches.append(batch)
        return {"loss": batch.indices.float().mean()}

    held_out = held_out_loss("mean index", loss, 21, seed=3, first=5)
    assert held_out.samples == 21
    values = [held_out.loss(model()), held_out.loss(model())]
    assert values == [15.0, 15.0]  # 5 .. 25
    half = len(batches) // 2
    for first, second in zip(batches[:half], batches[half:], strict=True):
        assert (first.iteration, first.seed) == (second.iteration, second.seed)
        assert torch.equal(first.indices, second.indices)
    assert torch.cat([batch.indices for batch in batches[:half]]).tolist() == list(range(5, 26))
    assert len({batch.iteration for batch in batches}) == half  # each batch has draws of its own
    assert batches[0].seed != 3  # and none of them is the training's
    batches.clear()
    many = held_out_loss("mean index", loss, 1280, seed=3)
    many.loss(model())
    assert many.samples == 128
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(0, 1280, 10))
