"""What the training loop hands to a loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """This rank's share of one (micro-)batch.

    `indices` are global sample indices, shape (b,); with `iteration` (which counts micro-batches across the whole
    training) and `seed` they key every random draw of the loss.
    """

    iteration: int
    indices: Tensor
    seed: int


LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""Named loss terms of a batch; the one called "loss" is optimised, all are logged."""
