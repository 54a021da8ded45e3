"""The one training loop of every stage.

A stage supplies a model and a loss; the loop supplies accumulation, clipping, warm-up and schedule, EMA, precision,
progress, checkpoints and exact continuation. The optimizer steps are those of `stepping`, in which other ranks take part.
"""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from artifacts_schema.base import Measurement
from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import Interrupted, RankError
from steps.files.progress import NullProgress, Progress, Watcher
from steps.training.batch import LossFunction
from steps.training.checkpoint import Checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.ema import ExponentialMovingAverage
from steps.training.interruption import stop_flag
from steps.training.nodes import Team
from steps.training.outcome import IntervalHook, Part, TrainingOutcome
from steps.training.pace import Speed, pause_after_checkpoint
from steps.training.randomness import Samples
from steps.training.ranks import ranks
from steps.training.recomputation import set_recomputation
from steps.training.selection import BestState, HeldOut
from steps.training.stepping import Stepper, Work

logger = logging.getLogger(__name__)


def train(  # noqa: PLR0913 - everything that decides the result, by name
    model: nn.Module,
    loss: LossFunction,
    *,
    training: TrainingConfig | Part,
    samples: Samples,
    seed: int,
    folder: Path | CheckpointFolder,
    held_out: HeldOut | None = None,
    progress: Progress | None = None,
    on_interval: IntervalHook | None = None,
    description: str = "training",
    device: torch.device | None = None,
    processes: int | Team = 1,
) -> TrainingOutcome:
    """Train `model` in place for `training.iterations` optimizer steps, or a `Part` of them, and return it with its EMA
    weights: with `held_out` those of the best of its start and `training.held_out_checks` later states, which are chosen by it.

    With more `processes` than one, this process is rank 0 of as many, one for each GPU, or of a `Team`'s, which may have other
    nodes; they share every micro-batch, and `loss` must be one that pickle takes. Their number changes no draw, and a
    checkpoint goes on with another one.

    Goes on from the newest checkpoint in `folder` (or its mirror); on a CPU with deterministic algorithms the result
    then equals that of an uninterrupted training bit for bit. Raises NonFiniteLossError (the last good checkpoint stays) and
    Interrupted after SIGTERM, SIGINT or SIGHUP (a checkpoint is written first, no later than one micro-batch, or one
    forward pass of a check, after it), and, with more `processes`, RankError when one of them is gone, and ConfigError for a
    batch that they cannot share.
    """
    with folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder) as checkpoints:
        part = training if isinstance(training, Part) else Part(training, range(training.iterations))
        work = Work(model, loss, part, samples, seed, device or torch.device("cpu"))
        run = _Training(work, checkpoints, held_out)
        run.restore()
        bar = progress or NullProgress()
        bar.start(description, run.part.stop)
        with stop_flag(checkpoints.hurry) as stop:
            try:
                with ranks(run.work(), processes, checkpoints.folder, stop):
                    run.stepper.connect()
                    run.loop(bar, on_interval, stop)
            except RankError:
                run.save()  # of the last whole iteration
                raise
            finally:
                with suppress(BrokenPipeError):
                    bar.close()
                checkpoints.close()  # in this block: a second signal must not end the sending
        return run.finish()


class _Training:
    """State of one training; everything in it is either configuration or part of the checkpoint."""

    def __init__(self, work: Work, checkpoints: CheckpointFolder, held_out: HeldOut | None) -> None:
        self.training, self.part, self.seed = work.part.training, work.part.iterations, work.seed
        self.checkpoints, self.folder = checkpoints, checkpoints.folder
        self.stepper = Stepper(replace(work, iteration=self.part.start))
        self.bare_model = self.stepper.bare_model
        self.ema = ExponentialMovingAverage(
            self.bare_model, self.training.ema_decay, on_host=self.training.ema_on_host
        )
        self.curve: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.pending = 0
        self.speed = Speed()
        self.best = BestState(held_out, self.training)

    @property
    def iteration(self) -> int:
        """Optimizer steps so far."""
        return self.stepper.iteration

    def work(self) -> Work:
        """What is left of the work, for other ranks."""
        return replace(self.stepper.work, iteration=self.iteration, optimizer=self.stepper.optimizer_state())

    def loop(self, progress: Progress, on_interval: IntervalHook | None, stop: threading.Event) -> None:
        """Run to the last iteration, or until `stop` is set."""
        saved_at, wait_s = time.monotonic(), self.training.checkpoint_interval_s
        last = self.part.stop
        progress.update(self.iteration)
        self.check(stop, progress)
        while self.iteration < last or stop.is_set():
            metrics = self.step(stop)
            if metrics is not None:
                if self.iteration % self.training.log_interval == 0 or self.iteration == last:
                    metrics |= self.log_interval(on_interval)
                try:
                    progress.update(self.iteration, **metrics)
                except BrokenPipeError:
                    stop.set()  # who started this task is gone: nobody would take its result
                self.check(stop, progress)
            if stop.is_set() or time.monotonic() - saved_at >= wait_s:
                started = time.monotonic()
                self.save()
                saved_at = time.monotonic()
                wait_s = pause_after_checkpoint(self.training.checkpoint_interval_s, saved_at - started)
            if stop.is_set():
                raise Interrupted(
                    f"stopped at iteration {self.iteration}; the checkpoint in {self.folder} continues it"
                )

    def check(self, stop: threading.Event, progress: Progress) -> None:
        """Measure the EMA weights where it is their turn, and show them to a progress that wants to see them. Cut off by
        `stop` it is done again after the continuation.
        """
        if not self.best.is_due(self.iteration):
            return
        started = time.monotonic()
        with self.ema.applied(self.bare_model):
            value = self.best.measure(self.bare_model, stop)
            if value is not None and isinstance(progress, Watcher):
                self.best.until_stopped(self.bare_model, stop, partial(progress.look, self.iteration))
        self.speed.leave_out(time.monotonic() - started)
        if value is not None:
            self.best.note(self.iteration, value, self.ema.shadow)

    def step(self, stop: threading.Event) -> dict[str, float] | None:
        """One optimizer step; returns the mean of the optimised loss, or None as `Stepper.step`."""
        accumulation = self.training.accumulation
        micros = self.stepper.step(stop)
        if micros is None:
            return None
        total = 0.0
        for terms in micros:
            for name, term in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + term / accumulation
            total += terms["loss"] / accumulation
        self.ema.update(self.bare_model)
        self.pending += 1
        self.speed.add(self.training.batch_size * accumulation)
        return {"loss": total}

    def log_interval(self, on_interval: IntervalHook | None) -> dict[str, float]:
        """Close a logging interval: means of all terms, learning rate, and what the hook measures."""
        row = {name: value / self.pending for name, value in self.sums.items()}
        if on_interval is not None:
            with self.ema.applied(self.bare_model):
                row |= on_interval(self.iteration, self.bare_model)
        row["learning_rate"] = self.stepper.optimizer.param_groups[0]["lr"]
        self.curve.append({"iteration": float(self.iteration), **row})
        self.sums, self.pending = {}, 0
        speed = self.speed.close_interval()
        logger.info("iteration=%d loss=%.5g images_per_s=%.1f", self.iteration, row["loss"], speed)
        return {"images_per_s": speed}

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {f"model.{name}": value for name, value in self.bare_model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.shadow.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
        for name, values in self.stepper.optimizer_state().items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in values.items()}
        state = {
            "ema_updates": self.ema.updates,
            "curve": self.curve,
            "sums": self.sums,
            "pending": self.pending,
            "candidates": self.best.candidates,
            "seed": self.seed,
        }
        self.checkpoints.save(Checkpoint(self.iteration, _apart(tensors), state))

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        checkpoint = self.checkpoints.load_latest()
        if checkpoint is None:
            return
        tensors, state = checkpoint.tensors, checkpoint.state
        self.bare_model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        for name in self.ema.shadow:
            self.ema.shadow[name].copy_(tensors[f"ema.{name}"])
        optimizer: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.stepper.parameters}
        for entry, value in tensors.items():
            if entry.startswith("optimizer."):
                _, key, name = entry.split(".", maxsplit=2)
                optimizer[name][key] = value
        self.stepper.restore(checkpoint.iteration, optimizer)
        self.ema.updates = state["ema_updates"]
        self.best.restore(state.get("candidates", ()), {k: tensors.get(f"best.{k}") for k in self.ema.shadow})
        self.curve, self.sums, self.pending = state["curve"], state["sums"], state["pending"]
        logger.info("continuing from iteration=%d in %s", self.iteration, self.folder)

    def finish(self) -> TrainingOutcome:
        """Put the EMA weights, those of the best state, into the model and hand everything over.

        There is no checkpoint of the end for its own sake: since the last one less than an interval's work was done.
        """
        set_recomputation(self.bare_model, False)
        self.bare_model.to(memory_format=torch.contiguous_format)
        self.ema.copy_to(self.bare_model)
        selection = self.best.hand_on(self.bare_model)
        self.bare_model.eval()
        speeds = self.speed.values
        return TrainingOutcome(
            model=self.bare_model,
            curve=self.curve,
            iterations=self.iteration - self.part.start,
            images_per_s=Measurement.of(speeds, "images/s") if speeds else None,
            selection=selection,
        )


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, none on the GPU. Tied parameters share storage, which safetensors refuses: they get copies of their own, and
    only they, since a second copy of a whole training is what a machine has least.
    """
    found: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        there = value.detach().cpu()
        place = there.untyped_storage().data_ptr()
        found[name] = there.clone() if place in places else there
        places.add(place)
    return found
