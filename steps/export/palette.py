"""Palettes: the 2^bits numbers that stand for all numbers of a weight with the least square error.

Lloyd's k-means in one dimension. A float16 weight has at most 65536 different numbers, so that a cluster is a range of
the sorted ones and its mean a difference of running sums: the time does not grow with the weight, and nothing is drawn
at random.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 200
_BINS = 64

Weight = NDArray[np.floating]
"""Numbers of a layer, as a package or a program in torch holds them."""


def palette(weight: Weight, bits: int) -> tuple[Weight, NDArray[np.uint8]]:
    """(table of 2^bits numbers, rising, in the weight's type; index of each number, flat) of a finite weight.

    A weight of fewer different numbers than the table has entries is kept exactly; the last entry is repeated.
    """
    size = 1 << bits
    numbers, inverse, counts = np.unique(weight, return_inverse=True, return_counts=True)
    if len(numbers) <= size:
        table = np.concatenate([numbers, np.repeat(numbers[-1:], size - len(numbers))])
        return table.astype(weight.dtype), inverse.ravel().astype(np.uint8)
    ordered = numbers.astype(np.float64)
    centres = _lloyd(ordered, counts, _first_centres(ordered, counts, size))
    nearest = np.searchsorted(_middles(centres), ordered)
    return centres.astype(weight.dtype), nearest.astype(np.uint8)[inverse.ravel()]


def palettized(weight: Weight, bits: int) -> Weight:
    """The weight as a runtime sees it: each number replaced by its table entry."""
    table, indices = palette(weight, bits)
    found: Weight = table[indices].reshape(weight.shape)
    return found


def _first_centres(numbers: NDArray[np.float64], counts: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Spread with the cube root of the density, which is best in the limit of many centres (Panter and Dite 1951)."""
    histogram, edges = np.histogram(numbers, bins=_BINS, weights=counts)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(histogram))])
    shares = (np.arange(size) + 0.5) / size * mass[-1]
    found: NDArray[np.float64] = np.interp(shares, mass, edges)
    return found


def _lloyd(
    numbers: NDArray[np.float64], counts: NDArray[np.int64], centres: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move every centre to the mean of what is nearest to it until nothing moves; an empty one stays."""
    amounts = np.concatenate([[0.0], np.cumsum(counts)])
    sums = np.concatenate([[0.0], np.cumsum(counts * numbers)])
    for _ in range(_ROUNDS):
        edges = np.concatenate([[0], np.searchsorted(numbers, _middles(centres)), [len(numbers)]])
        amount, total = np.diff(amounts[edges]), np.diff(sums[edges])
        moved = np.where(amount > 0, total / np.maximum(amount, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _middles(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where one centre's range ends and the next one's begins."""
    return (centres[1:] + centres[:-1]) / 2
