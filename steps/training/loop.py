"""The one training loop of every stage.

A stage supplies a model and a loss; the loop supplies accumulation, clipping, warm-up and schedule, EMA, precision,
progress, checkpoints and exact continuation. accelerate places the model and averages gradients over ranks; its
save_state pickles, so checkpoints are our own.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from artifacts_schema.base import Measurement
from artifacts_schema.config import TrainingConfig
from steps.files.errors import Interrupted, NonFiniteLossError
from steps.files.progress import NullProgress, Progress
from steps.training.batch import Batch, LossFunction
from steps.training.checkpoint import Checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.ema import ExponentialMovingAverage
from steps.training.interruption import stop_flag
from steps.training.randomness import epoch_indices

logger = logging.getLogger(__name__)
_MOST_SHARE = 0.03  # of a training's time may go into writing checkpoints


IntervalHook = Callable[[int, nn.Module], dict[str, float]]
"""Called at every logging interval with the number of finished iterations; what it returns joins the curve."""


@dataclass(frozen=True)
class Part:
    """Some iterations of a training, with the data, draws and learning rate that they have in the whole."""

    training: TrainingConfig
    iterations: range


@dataclass(frozen=True)
class TrainingOutcome:
    """`model` carries the EMA weights and is in evaluation mode; `curve` has one row per logging interval."""

    model: nn.Module
    curve: list[dict[str, float]]
    iterations: int
    images_per_s: Measurement | None


def learning_rate_factor(iteration: int, training: TrainingConfig, start: int = 0) -> float:
    """Factor on the learning rate at a 0-based iteration: linear warm-up from `start`, times constant or cosine.

    The cosine is that of the whole training; the optimizer's moments begin at `start`, and so does the warm-up.
    """
    warmup = training.warmup_iterations
    ramp = min(1.0, (iteration - start + 1) / (warmup + 1))
    if training.schedule == "constant":
        return ramp
    span = max(1, training.iterations - warmup)
    progress = min(1.0, max(0.0, (iteration - warmup) / span))
    low = training.final_learning_rate_fraction
    return ramp * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def pause_after_checkpoint(interval_s: float, spent_s: float) -> float:
    """Seconds until the next checkpoint: the interval, or longer where writing one is so slow that it would take more
    than 3 % of the time. An interval below a second asks for checkpoints at any price.
    """
    return interval_s if interval_s < 1.0 else max(interval_s, spent_s / _MOST_SHARE)


def train(
    model: nn.Module,
    loss: LossFunction,
    *,
    training: TrainingConfig | Part,
    samples: int,
    seed: int,
    folder: Path | CheckpointFolder,
    progress: Progress | None = None,
    on_interval: IntervalHook | None = None,
    description: str = "training",
    device: torch.device | None = None,
) -> TrainingOutcome:
    """Train `model` in place for `training.iterations` optimizer steps, or a `Part` of them, and return it with its EMA weights.

    Goes on from the newest checkpoint in `folder` (or its mirror); on a CPU with deterministic algorithms the result
    then equals that of an uninterrupted training bit for bit. Raises NonFiniteLossError (the last good checkpoint stays) and
    Interrupted after SIGTERM, SIGINT or SIGHUP (a checkpoint is written first, no later than one micro-batch after it).
    """
    with folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder) as checkpoints:
        part = training if isinstance(training, Part) else Part(training, range(training.iterations))
        run = _Training(model, loss, part, samples, seed, checkpoints, device)
        run.restore()
        bar = progress or NullProgress()
        bar.start(description, run.part.stop)
        with stop_flag(checkpoints.hurry) as stop:
            try:
                run.loop(bar, on_interval, stop)
            finally:
                with suppress(BrokenPipeError):
                    bar.close()
                checkpoints.close()  # in this block: a second signal must not end the sending
        return run.finish()


@dataclass
class _Speed:
    """Images per second of every logging interval; varies between runs and belongs to no identity."""

    values: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _images: int = 0

    def add(self, images: int) -> None:
        self._images += images

    def close_interval(self) -> float:
        now = time.monotonic()
        speed = self._images / max(now - self._since, 1e-9)
        self.values.append(speed)
        self._since, self._images = now, 0
        return speed


class _Training:
    """State of one training; everything in it is either configuration or part of the checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        part: Part,
        samples: int,
        seed: int,
        checkpoints: CheckpointFolder,
        device: torch.device | None,
    ) -> None:
        training, self.part = part.training, part.iterations
        self.training, self.samples, self.seed = training, samples, seed
        self.checkpoints, self.folder = checkpoints, checkpoints.folder
        self.loss = loss
        use_cpu = device is None or device.type == "cpu"
        self.accelerator = Accelerator(cpu=use_cpu)
        self.bare_model = model.to(self.accelerator.device).train()
        self.ema = ExponentialMovingAverage(self.bare_model, training.ema_decay)
        self.parameters = {n: p for n, p in self.bare_model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=training.learning_rate,
            betas=(0.9, training.adam_beta2),
            weight_decay=training.weight_decay,
        )
        self.model: nn.Module = self.accelerator.prepare_model(self.bare_model)
        self.iteration = self.part.start
        self.curve: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.pending = 0
        self.speed = _Speed()

    def loop(self, progress: Progress, on_interval: IntervalHook | None, stop: threading.Event) -> None:
        """Run to the last iteration, or until `stop` is set."""
        saved_at, wait_s = time.monotonic(), self.training.checkpoint_interval_s
        progress.update(self.iteration)
        while self.iteration < self.part.stop:
            metrics = self.step(stop)
            if metrics is not None:
                self.iteration += 1
                if self.iteration % self.training.log_interval == 0 or self.iteration == self.part.stop:
                    metrics |= self.log_interval(on_interval)
                try:
                    progress.update(self.iteration, **metrics)
                except BrokenPipeError:
                    stop.set()  # who started this task is gone: nobody would take its result
            due = time.monotonic() - saved_at >= wait_s
            if stop.is_set() or due:
                started = time.monotonic()
                self.save()
                saved_at = time.monotonic()
                wait_s = pause_after_checkpoint(self.training.checkpoint_interval_s, saved_at - started)
            if stop.is_set():
                raise Interrupted(
                    f"stopped at iteration {self.iteration}; the checkpoint in {self.folder} continues it"
                )

    def step(self, stop: threading.Event) -> dict[str, float] | None:
        """One optimizer step over all micro-batches; returns the mean of the optimised loss.

        None when `stop` was set before the last of them: what they have added is dropped, and the state is that of the
        last whole iteration.
        """
        config = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.iteration, config, self.part.start)
        total, sums = 0.0, dict(self.sums)
        for micro in range(config.accumulation):
            if stop.is_set():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            batch = self.batch(self.iteration * config.accumulation + micro)
            with torch.autocast(
                self.accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"
            ):
                terms = self.loss(self.model, batch)
            value = terms["loss"]
            self.check_finite(value, batch)
            self.accelerator.backward(value / config.accumulation)
            total += value.item() / config.accumulation
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) / config.accumulation
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), config.gradient_clip)
        if norm is not None and not bool(torch.isfinite(norm)):
            first = self.iteration * config.accumulation
            samples = [
                index
                for micro in range(config.accumulation)
                for index in self.batch(first + micro).indices.tolist()
            ]
            raise NonFiniteLossError(
                f"the gradient is not finite at iteration {self.iteration} (samples {samples[:8]}...); "
                f"the last good checkpoint stays in {self.folder}; lower the learning rate or look at these samples"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.bare_model)
        self.sums = sums
        self.pending += 1
        self.speed.add(config.batch_size * config.accumulation)
        return {"loss": total}

    def batch(self, iteration: int) -> Batch:
        """This rank's samples of a global micro-batch; ranks take every world-size-th one."""
        size = self.training.batch_size
        indices = epoch_indices(samples=self.samples, start=iteration * size, count=size, seed=self.seed)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return Batch(iteration=iteration, indices=indices[rank::world], seed=self.seed)

    def check_finite(self, value: Tensor, batch: Batch) -> None:
        """Raise NonFiniteLossError with the step and the samples, before the optimizer sees the loss."""
        if bool(torch.isfinite(value)):
            return
        samples = batch.indices[:8].tolist()
        raise NonFiniteLossError(
            f"the loss is {value.item()} at iteration {self.iteration}, batch {batch.iteration} (samples {samples}...); "
            f"the last good checkpoint stays in {self.folder}; lower the learning rate or look at these samples"
        )

    def log_interval(self, on_interval: IntervalHook | None) -> dict[str, float]:
        """Close a logging interval: means of all terms, learning rate, and what the hook measures."""
        row = {name: value / self.pending for name, value in self.sums.items()}
        if on_interval is not None:
            row |= on_interval(self.iteration, self.bare_model)
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.curve.append({"iteration": float(self.iteration), **row})
        self.sums, self.pending = {}, 0
        speed = self.speed.close_interval()
        logger.info("iteration=%d loss=%.5g images_per_s=%.1f", self.iteration, row["loss"], speed)
        return {"images_per_s": speed}

    def save(self) -> None:
        """Write a checkpoint (rank 0 only)."""
        if not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": value for name, value in self.bare_model.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.shadow.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        state = {
            "ema_updates": self.ema.updates,
            "curve": self.curve,
            "sums": self.sums,
            "pending": self.pending,
            "seed": self.seed,
        }
        # Tied parameters share storage, which safetensors refuses: every entry gets its own copy, none on the GPU.
        own = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        self.checkpoints.save(Checkpoint(self.iteration, own, state))

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        checkpoint = self.checkpoints.load_latest()
        if checkpoint is None:
            return
        tensors, state = checkpoint.tensors, checkpoint.state
        device = self.accelerator.device
        self.bare_model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        for name in self.ema.shadow:
            self.ema.shadow[name] = tensors[f"ema.{name}"].to(device)
        for name, parameter in self.parameters.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:
                    self.optimizer.state[parameter][key] = value if key == "step" else value.to(device)
        self.ema.updates = state["ema_updates"]
        self.curve, self.sums, self.pending = state["curve"], state["sums"], state["pending"]
        self.iteration = checkpoint.iteration
        logger.info("continuing from iteration=%d in %s", self.iteration, self.folder)

    def finish(self) -> TrainingOutcome:
        """Put the EMA weights into the model and hand everything over.

        There is no checkpoint of the end for its own sake: what has been done since the last one is less than an
        interval's work, as at any other moment, and a short training should not pay for one.
        """
        self.ema.copy_to(self.bare_model)
        self.bare_model.eval()
        speeds = self.speed.values
        return TrainingOutcome(
            model=self.bare_model,
            curve=self.curve,
            iterations=self.iteration - self.part.start,
            images_per_s=Measurement.of(speeds, "images/s") if speeds else None,
        )
