"""Distances between two sets of features, by clean-fid's own formulas.

The kernel distance (Binkowski et al. 2018) is unbiased at any n; the Frechet distance is not, and at a few hundred
pictures its bias swamps the signal. So intervals and ratios use the kernel distance; the Frechet distance stands beside
it, with real-against-real at the same n.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from cleanfid import fid as cleanfid
from numpy.typing import NDArray
from scipy.stats import t as student_t

from artifacts_schema.base import Interval
from steps.files.errors import EvaluationError

Features = NDArray[np.float32]
BLOCKS = 8
_SUBSETS = 20


def kernel_distance(generated: Features, real: Features, *, seed: int, blocks: int = BLOCKS) -> Interval:
    """Unbiased polynomial-kernel distance as the mean over disjoint blocks of the generated pictures.

    generated: (n, d), real: (m, d). The 95 % interval is Student's over the block means, so it needs at least two
    blocks of at least two pictures. Raises EvaluationError for fewer.
    """
    return interval(kernel_block_means(generated, real, seed=seed, blocks=blocks), n=len(generated))


def kernel_block_means(
    generated: Features, real: Features, *, seed: int, blocks: int = BLOCKS
) -> list[float]:
    """The distance of each of `blocks` disjoint blocks; the same seed gives the same blocks for every variant."""
    blocks = min(blocks, len(generated) // 2)
    if blocks < 2 or len(real) < 2:
        raise EvaluationError(
            f"a kernel distance with an interval needs at least 4 generated and 2 real pictures, "
            f"found {len(generated)} and {len(real)}"
        )
    means = []
    with numpy_seed(seed):
        for block in np.array_split(np.arange(len(generated)), blocks):
            part = generated[block].astype(np.float64)
            means.append(
                float(
                    cleanfid.kernel_distance(
                        part, real.astype(np.float64), num_subsets=_SUBSETS, max_subset_size=len(part)
                    )
                )
            )
    return means


def frechet_distance(generated: Features, real: Features) -> float:
    """Frechet distance of the Gaussians fitted to (n, d) and (m, d); biased upwards, the more the smaller n is."""
    if min(len(generated), len(real)) < 2:
        raise EvaluationError("a Frechet distance needs at least 2 pictures on each side")
    a, b = generated.astype(np.float64), real.astype(np.float64)
    difference = a.mean(0) - b.mean(0)
    # clean-fid's formula, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with the trace of the root taken from singular
    # values: the same number, and defined where n < d makes the covariances singular and a matrix root unstable.
    centred_a = (a - a.mean(0)) / math.sqrt(len(a) - 1)
    centred_b = (b - b.mean(0)) / math.sqrt(len(b) - 1)
    root_trace = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    return float(difference @ difference + (centred_a**2).sum() + (centred_b**2).sum() - 2.0 * root_trace)


def interval(values: Sequence[float], *, n: int | None = None, unit: str = "") -> Interval:
    """Mean of independent values with Student's 95 % interval; `n` is what the interval reports as sample size."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise EvaluationError(f"an interval needs at least 2 values, found {len(array)}")
    mean = float(array.mean())
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    reach = float(student_t.ppf(0.975, len(array) - 1)) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach, n=n or len(array), unit=unit)


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """clean-fid draws from numpy's global generator: seed it for the call, then put it back."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
