"""The numbers and the picture of `benchmarks.few_step`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.published import Metric
from steps.evaluation.distances import Estimate
from steps.evaluation.pictures import grid, png

REFERENCE = "velocity_50"
GRID_PICTURES = 12


@dataclass(frozen=True)
class Measured:
    """What is measured of one variant: means over pictures, and the kernel distance to real ones."""

    pictures: Tensor
    squared_error: Estimate
    clip: Estimate
    distance: Estimate


def metrics(measured: dict[str, Measured], students: Sequence[int]) -> list[Metric]:
    """Every variant's numbers, and the students against plain sampling."""
    rows: list[Metric] = []
    for name, item in measured.items():
        if name != REFERENCE:
            rows.append(_metric(f"few_step.{name}.latent_mse_to_50", item.squared_error))
        rows.append(_metric(f"few_step.{name}.kernel_distance", item.distance))
        rows.append(_metric(f"few_step.{name}.clip", item.clip, "cosine"))
    for steps in students:
        for other in (f"velocity_{steps}_ddim", f"base_{steps}_dpm"):
            rows += _against(measured, steps, other)
        rows += _against(measured, steps, "base_50")
    return rows


def _against(measured: dict[str, Measured], steps: int, other: str) -> list[Metric]:
    """A student against another variant. Ratios are student over other: below 1 the student is better."""
    student, plain = measured[f"student_{steps}"], measured[other]
    label = {"base_50": "base50"}.get(other, f"{other.split('_')[-1]}{steps}")
    prefix, note = f"student{steps}_vs_{label}", f"student over {other}, below 1 the student is better"
    difference = student.clip.minus(plain.clip)
    rows = [
        _metric(f"{prefix}.distance_ratio", student.distance.over(plain.distance), "x", note),
        _metric(f"{prefix}.clip_difference", difference, "cosine", "student - other"),
    ]
    if other != "base_50":
        error = student.squared_error.over(plain.squared_error)
        rows.append(_metric(f"{prefix}.latent_mse_ratio", error, "x", note))
    return rows


def _metric(name: str, estimate: Estimate, unit: str = "", note: str = "") -> Metric:
    value = estimate.interval()
    return Metric(name, value.value, unit, value.n, value.low, value.high, note)


def picture_grid(measured: dict[str, Measured], names: Sequence[str]) -> bytes:
    """PNG with one row of pictures per variant."""
    rows = [measured[name].pictures[:GRID_PICTURES] for name in names]
    return png(grid(torch.cat(rows), columns=len(rows[0])))
