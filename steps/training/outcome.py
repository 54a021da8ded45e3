"""What is asked of a training, and what it hands over."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from artifacts_schema.base import Measurement
from artifacts_schema.stage_configs import TrainingConfig
from artifacts_schema.training import Selection

IntervalHook = Callable[[int, nn.Module], dict[str, float]]
"""Called at every logging interval with the number of finished iterations and the model, which then carries its EMA
weights, the ones that are handed over, and is in evaluation mode; what it returns joins the curve."""


@dataclass(frozen=True)
class Part:
    """Some iterations of a training, with the data, draws and learning rate that they have in the whole."""

    training: TrainingConfig
    iterations: range


@dataclass(frozen=True)
class TrainingOutcome:
    """`model` is in evaluation mode and carries the EMA weights of the iteration that `selection` names, or without one
    of the last; `curve` has one row per logging interval.
    """

    model: nn.Module
    curve: list[dict[str, float]]
    iterations: int
    images_per_s: Measurement | None
    selection: Selection | None = None
