"""The numbers and the picture of `benchmarks.few_step`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from artifacts_schema.base import Interval
from benchmarks.published import Metric
from steps.evaluation.distances import interval
from steps.evaluation.pictures import grid, png

REFERENCE = "velocity_50"
GRID_PICTURES = 12
RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """What is measured of one variant: per picture, and the kernel distance per block of pictures."""

    pictures: Tensor
    squared_error: NDArray[np.float64]
    clip: NDArray[np.float64]
    kernel_blocks: NDArray[np.float64]


def metrics(measured: dict[str, Measured], students: Sequence[int], seed: int) -> list[Metric]:
    """Every variant's numbers, and the students against plain sampling."""
    rows: list[Metric] = []
    n = len(measured[REFERENCE].clip)
    for name, item in measured.items():
        if name != REFERENCE:
            rows.append(
                _metric(f"few_step.{name}.latent_mse_to_50", interval(item.squared_error.tolist()), n)
            )
        rows.append(_metric(f"few_step.{name}.kernel_distance", interval(item.kernel_blocks.tolist()), n))
        rows.append(_metric(f"few_step.{name}.clip", interval(item.clip.tolist()), n, "cosine"))
    for steps in students:
        for other in (f"velocity_{steps}_ddim", f"base_{steps}_dpm"):
            rows += _against(measured, steps, other, seed)
        rows += _against(measured, steps, "base_50", seed)
    return rows


def _against(measured: dict[str, Measured], steps: int, other: str, seed: int) -> list[Metric]:
    """A student against another variant. Ratios are student over other: below 1 the student is better."""
    student, plain = measured[f"student_{steps}"], measured[other]
    n = len(student.clip)
    label = {"base_50": "base50"}.get(other, f"{other.split('_')[-1]}{steps}")
    prefix, note = f"student{steps}_vs_{label}", f"student over {other}, below 1 the student is better"
    distance = _ratio(student.kernel_blocks, plain.kernel_blocks, seed)
    rows = [
        _metric(f"{prefix}.distance_ratio", distance, n, "x", note),
        _metric(
            f"{prefix}.clip_difference",
            interval((student.clip - plain.clip).tolist()),
            n,
            "cosine",
            "student - other",
        ),
    ]
    if other != "base_50":
        error = _ratio(student.squared_error, plain.squared_error, seed)
        rows.append(_metric(f"{prefix}.latent_mse_ratio", error, n, "x", note))
    return rows


def _ratio(first: NDArray[np.float64], second: NDArray[np.float64], seed: int) -> Interval:
    """Ratio of two paired means with its 95 % bootstrap interval over the pairs."""
    chosen = np.random.default_rng(seed).integers(0, len(first), (RESAMPLES, len(first)))
    ratios = first[chosen].mean(1) / second[chosen].mean(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(value=float(first.mean() / second.mean()), low=float(low), high=float(high), n=len(first))


def _metric(name: str, value: Interval, n: int, unit: str = "", note: str = "") -> Metric:
    return Metric(name, value.value, unit, n, value.low, value.high, note)


def picture_grid(measured: dict[str, Measured], names: Sequence[str]) -> bytes:
    """PNG with one row of pictures per variant."""
    rows = [measured[name].pictures[:GRID_PICTURES] for name in names]
    return png(grid(torch.cat(rows), columns=len(rows[0])))
