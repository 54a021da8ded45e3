"""The training loop: it learns, continues exactly, and stops when it must."""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import CheckpointError, Interrupted, NonFiniteLossError
from steps.files.progress import NullProgress
from steps.training.batch import Batch
from steps.training.checkpoint import Checkpoint, checkpoint_folders
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.ema import ema_decay
from steps.training.loop import train
from steps.training.outcome import Part, TrainingOutcome
from steps.training.pace import learning_rate_factor, pause_after_checkpoint
from steps.training.randomness import keyed_normal
from steps.training.selection import HeldOut

CONFIG = TrainingConfig(
    iterations=40, batch_size=4, learning_rate=3e-2, log_interval=10, checkpoint_interval_s=1e-6
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def regression(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    x = keyed_normal((4,), seed=batch.seed, name="x", iteration=batch.iteration, indices=batch.indices)
    return {"loss": ((net(x) - x.sum(1, keepdim=True)) ** 2).mean()}


def load_latest(folder: Path) -> Checkpoint | None:
    return CheckpointFolder(folder).load_latest()


def run(folder: Path, config: TrainingConfig = CONFIG, loss=regression, progress=None):  # type: ignore[no-untyped-def]
    return train(model(), loss, training=config, samples=13, seed=5, folder=folder, progress=progress)


def assert_equal(first: TrainingOutcome, second: TrainingOutcome) -> None:
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert first.curve == second.curve


class StopAfter(NullProgress):
    """Sends a signal, or raises, once so many iterations are done."""

    def __init__(self, done: int, error: Exception | None = None) -> None:
        self.done, self.error = done, error

    def update(self, done: int, **metrics: float) -> None:
        if done == self.done:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)


def test_loss_falls(tmp_path: Path) -> None:
    curve = run(tmp_path, CONFIG.model_copy(update={"iterations": 200})).curve
    assert curve[-1]["loss"] < 0.2 * curve[0]["loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stopped_at", [1, 10, 17])
def test_interrupted_training_equals_an_uninterrupted_one(
    tmp_path: Path, stopped_at: int, accumulation: int
) -> None:
    config = CONFIG.model_copy(update={"accumulation": accumulation})
    straight = run(tmp_path / "straight", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", config, progress=StopAfter(stopped_at, KeyboardInterrupt()))
    assert_equal(straight, run(tmp_path / "resumed", config))
    first, second = (load_latest(tmp_path / name) for name in ("straight", "resumed"))
    assert first is not None
    assert second is not None
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())


@pytest.mark.parametrize("stopped_at", [0, 9, 17])
def test_a_training_stopped_between_micro_batches_equals_an_uninterrupted_one(
    tmp_path: Path, stopped_at: int
) -> None:
    config = CONFIG.model_copy(update={"accumulation": 4, "checkpoint_interval_s": 1e6})
    seen = []

    def stopping(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        seen.append((batch.iteration, batch.micro))
        if seen[-1] == (stopped_at, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return regression(net, batch)

    net = model()
    with pytest.raises(Interrupted, match=f"iteration {stopped_at};"):
        train(net, stopping, training=config, samples=13, seed=5, folder=tmp_path / "resumed")
    assert seen[-1] == (stopped_at, 1)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert_equal(run(tmp_path / "straight", config), run(tmp_path / "resumed", config))


def test_a_training_whose_output_nobody_reads_any_more_stops_with_a_checkpoint(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    class Printing(NullProgress):
        def update(self, done: int, **metrics: float) -> None:
            if done == 7:
                os.close(reader)
            os.write(writer, b".")

        def close(self) -> None:
            os.write(writer, b".")

    with pytest.raises(Interrupted, match="iteration 7"):
        run(tmp_path, CONFIG.model_copy(update={"checkpoint_interval_s": 1e6}), progress=Printing())
    os.close(writer)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-000000007"]


class Watching(NullProgress):
    """Keeps the states that it is shown, and stops the training while it looks at one of them."""

    def __init__(self, stop_at: int = -1) -> None:
        self.seen: list[tuple[int, float]] = []
        self.stop_at = stop_at

    def look(self, iteration: int, model: nn.Module) -> None:
        value = held_out(model)
        self.seen.append((iteration, value))
        if iteration == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            held_out(model)
            self.seen.append((iteration, -1.0))  # the training would have gone on


def held_out(net: nn.Module) -> float:
    assert not torch.is_grad_enabled()
    return float(regression(net, Batch(0, torch.arange(4), 1))["loss"])


def watched(folder: Path, progress: NullProgress) -> TrainingOutcome:
    config = CONFIG.model_copy(update={"held_out_checks": 2, "checkpoint_interval_s": 1e6})
    check = HeldOut("loss", 4, held_out)
    return train(
        model(),
        regression,
        training=config,
        samples=13,
        seed=5,
        folder=folder,
        held_out=check,
        progress=progress,
    )


def test_a_watcher_sees_what_would_be_handed_on_and_changes_nothing(tmp_path: Path) -> None:
    watcher = Watching()
    outcome = watched(tmp_path / "watched", watcher)
    assert outcome.selection is not None
    assert watcher.seen == [(item.iteration, item.held_out) for item in outcome.selection.candidates]
    assert_equal(outcome, watched(tmp_path / "alone", NullProgress()))


def test_a_signal_is_heard_while_somebody_looks(tmp_path: Path) -> None:
    watcher = Watching(stop_at=0)
    with pytest.raises(Interrupted, match="iteration 0"):
        watched(tmp_path, watcher)
    assert [iteration for iteration, _ in watcher.seen] == [0]


def test_sigterm_writes_a_checkpoint_and_stops(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"checkpoint_interval_s": 1e6})
    with pytest.raises(Interrupted, match="iteration 7"):
        run(tmp_path, config, progress=StopAfter(7))
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.iteration == 7


def test_non_finite_loss_names_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def diverges(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        loss = regression(net, batch)["loss"]
        return {"loss": loss * float("nan") if batch.iteration == 12 else loss}

    with pytest.raises(NonFiniteLossError, match=r"loss is nan at iteration 12 \(samples \[\d+, "):
        run(tmp_path, loss=diverges)
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.iteration == 12
    assert all(torch.isfinite(value).all() for value in latest.tensors.values())


def test_non_finite_gradient_names_step_and_samples_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    def overflows(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        loss = regression(net, batch)["loss"]
        return {
            "loss": torch.sqrt(loss * 0.0) if batch.iteration == 12 else loss
        }  # 0, with an infinite slope

    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite at iteration 12 \(samples \[\d+, "):
        run(tmp_path, loss=overflows)
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.iteration == 12


def test_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    newest = checkpoint_folders(tmp_path)[-1]
    file = newest / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    latest = load_latest(tmp_path)
    assert latest is not None
    assert latest.iteration < CONFIG.iterations
    assert "damaged" in caplog.text


def test_only_damaged_checkpoints_do_not_start_over_silently(tmp_path: Path) -> None:
    run(tmp_path)
    for folder in checkpoint_folders(tmp_path):
        (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        run(tmp_path)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path)
    names = [folder.name for folder in checkpoint_folders(tmp_path)]
    assert names == ["checkpoint-000000039", "checkpoint-000000040"]
    assert json.loads((tmp_path / names[-1] / "state.json").read_text())["iteration"] == 40


def test_a_training_shorter_than_the_interval_writes_no_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, CONFIG.model_copy(update={"checkpoint_interval_s": 1e6}))
    assert checkpoint_folders(tmp_path) == []


@pytest.mark.parametrize(
    ("days", "interval_s", "expected"), [(1, 1e6, 0), (-1, 1e-6, 20)], ids=["forwards", "backwards"]
)
def test_jumps_of_the_wall_clock_do_not_change_when_checkpoints_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, interval_s: float, expected: int
) -> None:
    saves: list[int] = []
    original = CheckpointFolder.save

    def counted(folder: CheckpointFolder, checkpoint: Checkpoint) -> None:
        saves.append(checkpoint.iteration)
        original(folder, checkpoint)

    now, asked = time.time(), itertools.count()
    monkeypatch.setattr(CheckpointFolder, "save", counted)
    monkeypatch.setattr(time, "time", lambda: now + 86_400.0 * days * next(asked))
    run(tmp_path, CONFIG.model_copy(update={"iterations": 20, "checkpoint_interval_s": interval_s}))
    assert len(saves) == expected


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    for name in (".partial-000000007-12345", ".sending-checkpoint-000000003"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tensors.safetensors").write_bytes(b"half")
    run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-000000039", "checkpoint-000000040"}


def test_ema_weights_are_returned_and_have_moved(tmp_path: Path) -> None:
    start = model().state_dict()
    outcome = run(tmp_path, CONFIG.model_copy(update={"iterations": 100, "ema_decay": 0.9999}))
    last = load_latest(tmp_path)
    assert last is not None
    for name, value in outcome.model.state_dict().items():
        moved = (value - start[name]).norm()
        way = (last.tensors[f"model.{name}"] - start[name]).norm()
        assert moved > 0.5 * way, name
        assert not torch.equal(value, last.tensors[f"model.{name}"])


def test_slow_checkpoints_come_less_often() -> None:
    assert pause_after_checkpoint(60.0, 1.0) == 60.0
    assert pause_after_checkpoint(60.0, 6.0) == pytest.approx(200.0)  # 6 s are 3 % of 200 s
    assert pause_after_checkpoint(1e-3, 6.0) == 1e-3  # at any price
    assert pause_after_checkpoint(1.0, 6.0) == pytest.approx(200.0)


def test_ema_decay_ramp() -> None:
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(10**6, 0.999) == 0.999


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def fixed(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x = keyed_normal((4,), seed=0, name="x", iteration=0, indices=batch.indices)
        return {"loss": ((net(x) - x.sum(1, keepdim=True)) ** 2).mean()}

    small = CONFIG.model_copy(update={"accumulation": 2, "iterations": 5})
    large = CONFIG.model_copy(update={"batch_size": 8, "iterations": 5})
    first, second = run(tmp_path / "a", small, fixed), run(tmp_path / "b", large, fixed)
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(value, second.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(iterations=100, warmup_iterations=10, final_learning_rate_fraction=0.1)
    factors = [learning_rate_factor(i, config) for i in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1.0
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_the_cosine_can_take_the_last_iterations_alone() -> None:
    config = TrainingConfig(
        iterations=100, warmup_iterations=10, cosine_iterations=20, final_learning_rate_fraction=0.1
    )
    factors = [learning_rate_factor(i, config) for i in range(100)]
    assert set(factors[10:81]) == {1.0}
    assert factors[90] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)
    longer = config.model_copy(update={"iterations": 200})
    assert [learning_rate_factor(i, longer) for i in range(80)] == factors[:80]


def test_a_hook_sees_the_averaged_weights_and_leaves_the_training_alone(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def hook(iteration: int, model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {}

    alone = run(tmp_path / "alone")
    watched = train(
        model(),
        regression,
        training=CONFIG,
        samples=13,
        seed=5,
        folder=tmp_path / "watched",
        on_interval=hook,
    )
    assert_equal(alone, watched)
    for name, value in watched.model.state_dict().items():
        assert torch.equal(seen[-1][name], value)


def test_a_part_warms_up_at_its_start_and_has_the_learning_rate_of_the_whole() -> None:
    config = TrainingConfig(iterations=100, warmup_iterations=3)
    factors = [learning_rate_factor(i, config, 40) for i in range(40, 50)]
    assert factors[0] == pytest.approx(0.25 * learning_rate_factor(40, config))
    assert factors[3:] == [learning_rate_factor(i, config) for i in range(43, 50)]


def test_a_part_sees_the_data_and_iterations_of_the_whole_and_continues_exactly(tmp_path: Path) -> None:
    seen: list[tuple[int, list[int]]] = []

    def watched(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        seen.append((batch.iteration, batch.indices.tolist()))
        return regression(model, batch)

    whole = run(tmp_path / "whole", CONFIG, watched)
    straight = seen[10:25]
    seen.clear()
    part = run(tmp_path / "part", Part(CONFIG, range(10, 25)), watched)
    assert seen == straight
    assert part.iterations == 15 < whole.iterations
    assert [row["iteration"] for row in part.curve][-1] == 25.0
