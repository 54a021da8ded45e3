"""What the parts have in common: models, prepared data, sizes, and times that are taken in turn."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from artifacts_schema.run_configs import DataConfig
from benchmarks.evolved_unet import bootstrap_ratio
from benchmarks.published import ROOT, Metric
from steps.data.prepared import PreparedData
from steps.data.preparing import prepare_data
from steps.diffusion.schedule import NoiseSchedule
from steps.files.progress import NullProgress
from steps.latency.timing import CpuClock, interleaved
from steps.models.base import BaseModel, load_base
from steps.pretraining.micro import write_micro_base
from steps.store import LocalStore

SEED = 0


@dataclass(frozen=True)
class Setting:
    """`quick` measures nothing of use: a micro model and single repeats, to see that both sides compute the same."""

    folder: Path
    quick: bool
    repeats: int
    batch: int

    @property
    def store(self) -> LocalStore:
        """For whatever a part leaves."""
        return LocalStore(self.folder / "store")

    def base(self) -> BaseModel:
        """The embedded base, or a micro one."""
        return load_base(write_micro_base(self.folder / "base") if self.quick else ROOT / "assets/base")

    def data(self, base: BaseModel) -> PreparedData:
        """A few of the embedded pictures as `base` sees them."""
        config = DataConfig(limit=8 if self.quick else 128)
        ref = prepare_data(base, config, self.store, progress=NullProgress())
        return PreparedData.load(self.store, ref)

    @property
    def warmup(self) -> int:
        """Calls that do not count."""
        return 1 if self.quick else 2


def schedule_of(base: BaseModel) -> NoiseSchedule:
    """The base's noise schedule."""
    return NoiseSchedule.from_config(base.scheduler_config)


def timed(
    setting: Setting, calls: dict[str, Callable[[], Any]], *, repeats: int = 0, warmup: int | None = None
) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turn."""
    return interleaved(
        calls,
        clock=CpuClock(),
        warmup=setting.warmup if warmup is None else warmup,
        repeats=repeats or setting.repeats,
    )


def speed(name: str, milliseconds: list[float], pictures: int, note: str = "") -> Metric:
    """Pictures a second, with the p10 and p90 of the repeats."""
    values = torch.tensor(milliseconds, dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.9, 0.1], dtype=torch.float64)).tolist()
    each = 1e3 * pictures
    return Metric(
        name,
        each / median(milliseconds),
        "pictures/s",
        len(milliseconds),
        each / low,
        each / high,
        note or "p10, p90",
    )


def ratio(name: str, slow: list[float], fast: list[float], note: str = "") -> Metric:
    """How many times as long the one took, medians, with the interval over pairs of repeats."""
    low, high = bootstrap_ratio(slow, fast, seed=SEED)
    return Metric(name, median(slow) / median(fast), "x", len(fast), low, high, note)


def mixed(one: list[float], other: list[float], share: float) -> list[float]:
    """Times of a mixture, `share` of which is the `other` kind, repeat by repeat."""
    return [(1.0 - share) * a + share * b for a, b in zip(one, other, strict=True)]


def gains(prefix: str, times: Mapping[str, list[float]], notes: Mapping[str, str]) -> list[Metric]:
    """What each step from one variant to the next brings; `times` begin with the plain loop and end with ours."""
    names = list(times)
    return [
        ratio(f"{prefix}.gain.{after}", times[before], times[after], notes.get(after, ""))
        for before, after in zip(names, names[1:], strict=False)
    ]


def agreement(name: str, pairs: list[tuple[float, float]], limit: float) -> Metric:
    """The largest relative difference of numbers that must be equal. Ends the program over `limit`."""
    worst = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
    if worst > limit:
        raise SystemExit(
            f"{name}: both sides must compute the same to {limit:g}, found a difference of {worst:.2g}"
        )
    return Metric(name, worst, "relative", len(pairs), worst, worst, "of the same draws, largest")


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)
