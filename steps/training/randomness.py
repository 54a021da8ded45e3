"""Random draws as pure functions of their keys.

Nothing here keeps state: a draw depends on the seed, its name, the iteration and the global index of the sample, so
that ranks, loader workers, batch order and resumption cannot change it. Losses draw from here and never from torch's
global generator.
"""

import hashlib
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


def spawn(seed: int, *names: str | int) -> int:
    """Named child seed in [0, 2**63): `spawn(seed, "probe", 3)`. Different names give independent streams."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _generator(seed: int, *names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(spawn(seed, *names))


def keyed_normal(shape: tuple[int, ...], *, seed: int, name: str, iteration: int, indices: Tensor) -> Tensor:
    """Standard normal noise (n, *shape), float32 on the CPU; row i depends only on the keys and `indices[i]`."""
    rows = [
        torch.randn(shape, generator=_generator(seed, name, iteration, index)) for index in indices.tolist()
    ]
    return torch.stack(rows) if rows else torch.empty((0, *shape))


def keyed_uniform(
    low: float, high: float, *, seed: int, name: str, iteration: int, indices: Tensor
) -> Tensor:
    """Uniform draws in [low, high), shape (n,), float32."""
    rows = [torch.rand((), generator=_generator(seed, name, iteration, index)) for index in indices.tolist()]
    return low + (high - low) * torch.stack(rows) if rows else torch.empty(0)


def keyed_integers(low: int, high: int, *, seed: int, name: str, iteration: int, indices: Tensor) -> Tensor:
    """Uniform integers in [low, high), shape (n,), int64."""
    rows = [
        torch.randint(low, high, (), generator=_generator(seed, name, iteration, index))
        for index in indices.tolist()
    ]
    return torch.stack(rows) if rows else torch.empty(0, dtype=torch.int64)


def coin(probability: float, *, seed: int, name: str, iteration: int) -> bool:
    """One coin per iteration, the same on every rank; True with the given probability."""
    return bool(torch.rand((), generator=_generator(seed, name, iteration)).item() < probability)


@lru_cache(maxsize=2)  # a batch lies in two epochs at most; a permutation of ten million takes a second
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=_generator(seed, "epoch", epoch))


class Order(Protocol):
    """Samples that know in which order they are best read."""

    def indices(self, *, start: int, count: int, seed: int) -> Tensor:
        """As `epoch_indices`."""


Samples = int | Order
"""What a training goes through: so many samples in any order, or in an order of their own."""


def epoch_indices(*, samples: Samples, start: int, count: int, seed: int) -> Tensor:
    """Global sample indices at positions start .. start+count-1 of an endless stream of shuffled epochs.

    Every epoch is its own permutation of range(samples), keyed by (seed, epoch): the position alone says where the
    data are, so a checkpoint need store nothing more. Shape (count,), int64.
    """
    if not isinstance(samples, int):
        return samples.indices(start=start, count=count, seed=seed)
    if samples <= 0:
        raise ValueError(f"expected at least one sample, found {samples}")
    parts: list[Tensor] = []
    position, remaining = start, count
    while remaining > 0:
        epoch, offset = divmod(position, samples)
        part = _order(samples, seed, epoch)[offset : offset + remaining]
        parts.append(part)
        position += len(part)
        remaining -= len(part)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
