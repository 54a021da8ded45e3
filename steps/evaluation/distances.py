"""Distances between two sets of features, and intervals that know which pictures belong together.

The kernel distance (Binkowski et al. 2018) is unbiased at any n; the Frechet distance is not, and at a few hundred
pictures its bias swamps the signal. So intervals and ratios use the kernel distance; the Frechet distance stands beside
it, with real-against-real at the same n.

Pictures of one group (one person doing one thing, in all skin tones and seeds) are not independent. Every interval is a
jackknife over groups: what the estimate becomes without each of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from artifacts_schema.base import Interval
from steps.files.errors import EvaluationError

Features = NDArray[np.float32]
Numbers = NDArray[np.float64]
Places = NDArray[np.intp]
_TOGETHER = 1024  # pictures whose kernels are held at once


@dataclass(frozen=True)
class Estimate:
    """An estimate from `n` pictures: over all groups, and without each of them, (groups,)."""

    value: float
    without: Numbers
    n: int

    def minus(self, other: "Estimate") -> "Estimate":
        """The paired difference; both are of the same groups in the same order."""
        return Estimate(self.value - other.value, self.without - other.without, self.n)

    def over(self, other: "Estimate") -> "Estimate":
        """The paired ratio, for a denominator that no group alone keeps from zero; else EvaluationError."""
        if min(other.value, float(other.without.min())) <= 0.0:
            raise EvaluationError(
                f"a ratio needs a denominator above 0, found {other.value:.4g} (without one group "
                f"{other.without.min():.4g}): give more pictures"
            )
        return Estimate(self.value / other.value, self.without / other.without, self.n)

    def interval(self, unit: str = "") -> Interval:
        """With the jackknife's 95 % interval, Student's over the groups. Raises EvaluationError for one group."""
        count = len(self.without)
        if count < 2:
            raise EvaluationError(
                f"an interval needs at least 2 groups of pictures that are independent, found {count}"
            )
        deviations = self.without - self.without.mean()
        error = math.sqrt((count - 1) / count * float((deviations**2).sum()))
        reach = float(student_t.ppf(0.975, count - 1)) * error
        return Interval(
            value=self.value, low=self.value - reach, high=self.value + reach, n=self.n, unit=unit
        )


def clustered_mean(values: Sequence[float] | Numbers, groups: Sequence[str]) -> Estimate:
    """Mean of one value a picture, (n,)."""
    numbers, places = np.asarray(values, dtype=np.float64), _places(groups)
    sums, counts = np.bincount(places, numbers), np.bincount(places)
    with np.errstate(invalid="ignore"):  # of a single group, which has no interval
        without = (sums.sum() - sums) / (counts.sum() - counts)
    return Estimate(float(numbers.mean()), without, len(numbers))


def kernel_distance(
    generated: Features, real: Features, *, groups: Sequence[str], real_groups: Sequence[str]
) -> Estimate:
    """Unbiased distance with the kernel (x.y / d + 1)^3, over the pairs of pictures of different groups.

    generated: (n, d), real: (m, d), with the group of each picture. Pairs within a group say how alike its pictures
    are, not the two sets: where both sides have the same groups they would make the distance too small. With n = m and
    a group of its own for every picture it is clean-fid's `kernel_distance` on one subset of everything. A group leaves
    the jackknife on both sides at once. Raises EvaluationError for fewer than three groups
    a side: without one of two no pair is left.
    """
    if min(len(set(groups)), len(set(real_groups))) < 3:
        raise EvaluationError(
            f"a kernel distance needs pictures of at least 3 groups a side, found {len(set(groups))} and "
            f"{len(set(real_groups))}"
        )
    names = {name: place for place, name in enumerate(sorted({*groups, *real_groups}))}
    a, b = (np.array([names[name] for name in side], dtype=np.intp) for side in (groups, real_groups))
    xx, yy, xy = (
        _mean_between(*pair, len(names))
        for pair in ((generated, a) * 2, (real, b) * 2, (generated, a, real, b))
    )
    found = xx + yy - 2 * xy
    return Estimate(float(found[-1]), found[:-1], len(generated))


def mean_kernel(generated: Features, real: Features) -> Numbers:
    """(n,) the mean kernel of each of (n, d) with all of (m, d)."""
    found: Numbers = _kernel(generated, real).mean(1)
    return found


def _mean_between(x: Features, a: Places, y: Features, b: Places, count: int) -> Numbers:
    """The mean kernel of (n, d) and (m, d) over the pairs of different groups, given by number (n,) and (m,).

    Without each of the `count` groups, and last with all of them. In blocks: 30,000 pictures a side have 7 GB of kernels.
    """
    rows, columns, own = (np.zeros(count) for _ in range(3))
    for start in range(0, len(x), _TOGETHER):
        group = a[start : start + _TOGETHER]
        kernel = _kernel(x[start : start + _TOGETHER], y)
        rows += np.bincount(group, kernel.sum(1), count)
        columns += np.bincount(b, kernel.sum(0), count)
        own += np.bincount(group, np.where(group[:, None] == b, kernel, 0.0).sum(1), count)
    n, m = (np.bincount(side, minlength=count).astype(np.float64) for side in (a, b))
    return _without_each(rows, columns, own) / _without_each(n * m.sum(), m * n.sum(), n * m)


def _without_each(rows: Numbers, columns: Numbers, own: Numbers) -> Numbers:
    """Sums over the pairs of different groups, (groups,) by the first's, the second's and where both are the same: without
    each group, and last with all of them.
    """
    rows, columns = rows - own, columns - own
    return np.append(rows.sum() - rows - columns, rows.sum())


def _places(groups: Sequence[str]) -> Places:
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _kernel(a: Features, b: Features) -> Numbers:
    product: Numbers = a.astype(np.float64) @ b.astype(np.float64).T
    kernel: Numbers = (product / a.shape[1] + 1.0) ** 3
    return kernel


def frechet_distance(generated: Features, real: Features) -> float:
    """Frechet distance of the Gaussians fitted to (n, d) and (m, d); biased upwards, the more the smaller n is."""
    if min(len(generated), len(real)) < 2:
        raise EvaluationError("a Frechet distance needs at least 2 pictures on each side")
    a, b = generated.astype(np.float64), real.astype(np.float64)
    difference = a.mean(0) - b.mean(0)
    # clean-fid's formula, |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with the trace of the root taken from singular
    # values: the same number, and defined where n < d makes the covariances singular and a matrix root unstable.
    # Those of A B^T are those of R S^T, with A = QR and B = PS, which at 30,000 pictures is the smaller matrix by far.
    centred_a = (a - a.mean(0)) / math.sqrt(len(a) - 1)
    centred_b = (b - b.mean(0)) / math.sqrt(len(b) - 1)
    small_a, small_b = (np.asarray(np.linalg.qr(side, mode="r")) for side in (centred_a, centred_b))
    root_trace = np.linalg.svd(small_a @ small_b.T, compute_uv=False).sum()
    return float(difference @ difference + (centred_a**2).sum() + (centred_b**2).sum() - 2.0 * root_trace)
