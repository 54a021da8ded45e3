"""What the training loop hands to a loss."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """This rank's share of one micro-batch of an optimizer step.

    `indices` are global sample indices, shape (b,); with `iteration` (which counts optimizer steps) and `seed` they key
    every random draw of the loss. So neither ranks nor accumulation change a draw, and what is drawn once per iteration
    (a coin, a mask) holds for the whole step. `micro` counts the micro-batches of a step and keys nothing; `ranks` share the
    micro-batch, each with as many samples.
    """

    iteration: int
    indices: Tensor
    seed: int
    micro: int = 0
    ranks: int = 1


LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""Named loss terms of a batch; the one called "loss" is optimised, all are logged."""
