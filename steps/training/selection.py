"""Which state of a training is handed on: the best by a held-out number, its start included.

A short training can end worse than it began, and nothing in its own loss says so. What was best so far is part of the
checkpoint, so that a training that was cut off chooses as one that was not.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from artifacts_schema.stage_configs import TrainingConfig
from artifacts_schema.training import Candidate, Selection
from steps.files.errors import NonFiniteLossError
from steps.training.batch import Batch, LossFunction
from steps.training.randomness import spawn

_SAMPLES = 128
_TOGETHER = 8  # small, so that a loss that skips units is measured under sixteen masks

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class HeldOut:
    """What states of a training are compared by: `loss` of a model on samples that it never learns from.

    Lower is better. Every call must take the same samples, noise and timesteps, so that two states differ by their
    weights alone. `measure` says in words what the number is.
    """

    measure: str
    samples: int
    loss: Callable[[nn.Module], float]


def held_out_loss(measure: str, loss: LossFunction, samples: int, *, seed: int, first: int = 0) -> HeldOut:
    """The mean of a loss over at most 128 of the `samples` samples from `first`, in batches whose draws are fixed."""
    count = min(_SAMPLES, samples)
    seed = spawn(seed, "held out")

    def mean(model: nn.Module) -> float:
        total = 0.0
        for number, indices in enumerate((first + spread(samples, count)).split(_TOGETHER)):
            total += float(loss(model, Batch(number, indices, seed))["loss"]) * len(indices)
        return total / count

    return HeldOut(measure, count, mean)


def spread(samples: int, count: int) -> Tensor:
    """`count` indices (n,) evenly spread over `samples`: neighbours are often captions of one kind."""
    return torch.arange(count) * samples // count


class _Stopped(Exception):
    """A check was cut off."""


class BestState:
    """The candidates so far, and the weights of the best of them (on the CPU); without `held_out` none at all."""

    def __init__(self, held_out: HeldOut | None, training: TrainingConfig) -> None:
        self.held_out = held_out
        self.candidates: list[tuple[int, float]] = []  # iteration, held-out number
        self.weights: dict[str, Tensor] = {}
        parts = training.held_out_checks
        self._checks = {round(part * training.iterations / parts) for part in range(parts + 1)}

    def is_due(self, iteration: int) -> bool:
        """True where the state after `iteration` steps is a candidate that has not been measured."""
        known = {done for done, _ in self.candidates}
        return self.held_out is not None and iteration in self._checks - known

    def measure(self, model: nn.Module, stop: threading.Event) -> float | None:
        """The held-out number of a model, or None when `stop` was set before its last forward pass."""
        assert self.held_out is not None  # noqa: S101 - only called where it is due
        return self.until_stopped(model, stop, self.held_out.loss)

    @staticmethod
    def until_stopped(
        model: nn.Module, stop: threading.Event, work: Callable[[nn.Module], Result]
    ) -> Result | None:
        """What `work` finds out about a model, or None when `stop` was set before its last forward pass."""

        def look(*_: object) -> None:
            if stop.is_set():
                raise _Stopped

        hook = model.register_forward_pre_hook(look)
        try:
            with torch.no_grad():
                return work(model)
        except _Stopped:
            return None
        finally:
            hook.remove()

    def note(self, iteration: int, value: float, weights: Mapping[str, Tensor]) -> None:
        """Add a candidate, and keep its weights if it is the best; of equals the first. Raises NonFiniteLossError."""
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the held-out loss is {value} after {iteration} iterations; lower the learning rate"
            )
        if value < min((value for _, value in self.candidates), default=math.inf):
            self.weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
        self.candidates.append((iteration, value))
        logger.info("iteration=%d held_out=%.5g", iteration, value)

    def restore(self, candidates: Sequence[Sequence[float]], weights: Mapping[str, Tensor | None]) -> None:
        """Take up what a checkpoint holds."""
        self.candidates = [(int(iteration), value) for iteration, value in candidates]
        self.weights = {name: value for name, value in weights.items() if value is not None}

    @torch.no_grad()
    def hand_on(self, model: nn.Module) -> Selection | None:
        """Put the best weights into the model and say which they are; None and nothing without candidates."""
        if self.held_out is None or not self.candidates:
            return None
        parameters = dict(model.named_parameters())
        for name, value in self.weights.items():
            parameters[name].copy_(value)
        chosen = min(self.candidates, key=lambda candidate: candidate[1])[0]
        return Selection(
            measure=self.held_out.measure,
            samples=self.held_out.samples,
            candidates=tuple(Candidate(iteration=at, held_out=value) for at, value in self.candidates),
            chosen=chosen,
        )
