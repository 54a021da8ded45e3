"""The one training loop of every stage.

A stage supplies a model and a loss; the loop supplies accumulation, clipping, warm-up and schedule, EMA, precision,
progress, checkpoints and exact continuation. accelerate places the model and averages gradients over ranks; its
save_state pickles, so checkpoints are our own.
"""

import logging
import threading
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from torch import nn

from artifacts_schema.base import Measurement
from artifacts_schema.stage_configs import TrainingConfig
from steps.files.errors import Interrupted, NonFiniteLossError
from steps.files.progress import NullProgress, Progress, Watcher
from steps.training.batch import Batch, LossFunction
from steps.training.checkpoint import Checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.ema import ExponentialMovingAverage
from steps.training.interruption import stop_flag
from steps.training.outcome import IntervalHook, Part, TrainingOutcome
from steps.training.pace import Speed, learning_rate_factor, pause_after_checkpoint
from steps.training.randomness import epoch_indices
from steps.training.selection import BestState, HeldOut

logger = logging.getLogger(__name__)


def train(  # noqa: PLR0913 - everything that decides the result, by name
    model: nn.Module,
    loss: LossFunction,
    *,
    training: TrainingConfig | Part,
    samples: int,
    seed: int,
    folder: Path | CheckpointFolder,
    held_out: HeldOut | None = None,
    progress: Progress | None = None,
    on_interval: IntervalHook | None = None,
    description: str = "training",
    device: torch.device | None = None,
) -> TrainingOutcome:
    """Train `model` in place for `training.iterations` optimizer steps, or a `Part` of them, and return it with its EMA
    weights: with `held_out` those of the best of its start and `training.held_out_checks` later states, which are chosen by it.

    Goes on from the newest checkpoint in `folder` (or its mirror); on a CPU with deterministic algorithms the result
    then equals that of an uninterrupted training bit for bit. Raises NonFiniteLossError (the last good checkpoint stays) and
    Interrupted after SIGTERM, SIGINT or SIGHUP (a checkpoint is written first, no later than one micro-batch, or one
    forward pass of a check, after it).
    """
    with folder if isinstance(folder, CheckpointFolder) else CheckpointFolder(folder) as checkpoints:
        part = training if isinstance(training, Part) else Part(training, range(training.iterations))
        run = _Training(
            model, loss, part, checkpoints, samples=samples, seed=seed, held_out=held_out, device=device
        )
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


class _Training:
    """State of one training; everything in it is either configuration or part of the checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction,
        part: Part,
        checkpoints: CheckpointFolder,
        *,
        samples: int,
        seed: int,
        held_out: HeldOut | None,
        device: torch.device | None,
    ) -> None:
        training, self.part = part.training, part.iterations
        self.training, self.samples, self.seed = training, samples, seed
        self.checkpoints, self.folder, self.loss = checkpoints, checkpoints.folder, loss
        # A skipped unit has no gradient, here as on one rank: to touch it with a zero would decay and move its weights.
        ranks = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(cpu=device is None or device.type == "cpu", kwargs_handlers=[ranks])
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
        self.curve: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.iteration, self.pending = self.part.start, 0
        self.speed = Speed()
        self.best = BestState(held_out, training)

    def loop(self, progress: Progress, on_interval: IntervalHook | None, stop: threading.Event) -> None:
        """Run to the last iteration, or until `stop` is set."""
        saved_at, wait_s = time.monotonic(), self.training.checkpoint_interval_s
        last = self.part.stop
        progress.update(self.iteration)
        self.check(stop, progress)
        while self.iteration < last or stop.is_set():
            metrics = self.step(stop)
            if metrics is not None:
                self.iteration += 1
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
            if value is not None and isinstance(progress, Watcher) and self.accelerator.is_main_process:
                self.best.until_stopped(self.bare_model, stop, partial(progress.look, self.iteration))
        self.speed.leave_out(time.monotonic() - started)
        if value is not None:
            # Ranks choose alike, whatever the last bit of theirs.
            agreed = broadcast(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device))
            self.best.note(self.iteration, float(agreed), self.ema.shadow)

    def step(self, stop: threading.Event) -> dict[str, float] | None:
        """One optimizer step over all micro-batches; returns the mean of the optimised loss. None when `stop` was set
        before the last of them: what they have added is dropped, and the state is that of the last whole iteration.
        """
        config = self.training
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.iteration, config, self.part.start)
        total, sums = 0.0, dict(self.sums)
        for micro in range(config.accumulation):
            if stop.is_set():
                self.optimizer.zero_grad(set_to_none=True)
                return None
            is_last = micro == config.accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                terms = self.backward(self.batch(micro))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term / config.accumulation
            total += terms["loss"] / config.accumulation
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.bare_model)
        self.sums = sums
        self.pending += 1
        self.speed.add(config.batch_size * config.accumulation)
        return {"loss": total}

    def backward(self, batch: Batch) -> dict[str, float]:
        """Add the gradient of one micro-batch; returns its loss terms. Raises NonFiniteLossError."""
        config = self.training
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            terms = self.loss(self.model, batch)
        if not bool(torch.isfinite(terms["loss"])):
            raise self.not_finite(f"loss is {terms['loss'].item()}", batch.indices.tolist())
        self.accelerator.backward(terms["loss"] / config.accumulation)
        return {name: float(term.detach()) for name, term in terms.items()}

    def clip(self) -> None:
        """Clip the gradient's norm. Raises NonFiniteLossError before the optimizer sees a gradient without one."""
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.training.gradient_clip)
        if norm is None or bool(torch.isfinite(norm)):
            return
        batches = [self.batch(micro).indices.tolist() for micro in range(self.training.accumulation)]
        raise self.not_finite("gradient is not finite", [i for indices in batches for i in indices])

    def batch(self, micro: int) -> Batch:
        """This rank's samples of a micro-batch of the present iteration; ranks take every world-size-th one."""
        size = self.training.batch_size
        start = (self.iteration * self.training.accumulation + micro) * size
        indices = epoch_indices(samples=self.samples, start=start, count=size, seed=self.seed)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return Batch(self.iteration, indices[rank::world], self.seed, micro)

    def not_finite(self, what: str, samples: list[int]) -> NonFiniteLossError:
        """An error with the step and the samples."""
        return NonFiniteLossError(
            f"the {what} at iteration {self.iteration} (samples {samples[:8]}...); "
            f"the last good checkpoint stays in {self.folder}; lower the learning rate or look at these samples"
        )

    def log_interval(self, on_interval: IntervalHook | None) -> dict[str, float]:
        """Close a logging interval: means of all terms, learning rate, and what the hook measures."""
        row = {name: value / self.pending for name, value in self.sums.items()}
        if on_interval is not None:
            with self.ema.applied(self.bare_model):
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
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        state = {
            "ema_updates": self.ema.updates,
            "curve": self.curve,
            "sums": self.sums,
            "pending": self.pending,
            "candidates": self.best.candidates,
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
        self.best.restore(state.get("candidates", ()), {k: tensors.get(f"best.{k}") for k in self.ema.shadow})
        self.curve, self.sums, self.pending = state["curve"], state["sums"], state["pending"]
        self.iteration = checkpoint.iteration
        logger.info("continuing from iteration=%d in %s", self.iteration, self.folder)

    def finish(self) -> TrainingOutcome:
        """Put the EMA weights, those of the best state, into the model and hand everything over.

        There is no checkpoint of the end for its own sake: since the last one less than an interval's work was done.
        """
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
