"""(g) How a distillation step, an evaluation and the choice of samples grow, and what a second process brings."""

from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.full_size_training import RandomData
from benchmarks.plain.setting import SEED, Setting, speed, timed
from benchmarks.plain.step_distillation import Ours, v_unet
from benchmarks.published import Metric
from benchmarks.two_ranks import efficiency
from steps.evaluation.distances import kernel_distance
from steps.evaluation.features import EfficientNetLite0
from steps.models.base import BaseModel
from steps.training.randomness import epoch_indices


def measure(setting: Setting) -> list[Metric]:
    """Pictures a second over batch and resolution, seconds over pictures, and two gloo processes against one."""
    base = setting.base()
    return [
        *_batches(setting, base),
        *_resolutions(setting, base),
        *_pictures(setting),
        *_samples(setting),
        *([] if setting.quick else [_workers(setting)]),
    ]


def _steps(setting: Setting, base: BaseModel, side: int, batch: int) -> list[float]:
    shape = dict(base.unet.config) | {"sample_size": side}
    data: Any = RandomData(shape)
    ours = Ours(base, data, v_unet(setting, base), batch)
    return timed(
        setting, {"": partial(ours.step, 0, guided=False)}, repeats=1 if setting.quick else 3, warmup=1
    )[""]


def _batches(setting: Setting, base: BaseModel) -> list[Metric]:
    side = int(base.unet.config.sample_size)
    return [
        speed(
            f"growth.batch.{batch}", _steps(setting, base, side, batch), batch, "vanilla distillation steps"
        )
        for batch in ((1, 2) if setting.quick else (1, 2, 4, 8, 16, 32))
    ]


def _resolutions(setting: Setting, base: BaseModel) -> list[Metric]:
    return [
        speed(
            f"growth.latent_side.{side}",
            _steps(setting, base, side, 4),
            4,
            "vanilla distillation steps, batch 4",
        )
        for side in ((8, 16) if setting.quick else (8, 16, 32, 48))
    ]


def _pictures(setting: Setting) -> list[Metric]:
    """Features and kernel distance of so many pictures, a group of its own each."""
    features, found = EfficientNetLite0(), []
    for count in (4, 8) if setting.quick else (64, 128, 256):
        pictures = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
        groups = [str(number) for number in range(count)]

        def measured(pictures: Tensor = pictures, groups: list[str] = groups) -> None:
            found = features(pictures).numpy()
            kernel_distance(found, found[::-1], groups=groups, real_groups=groups)

        times = timed(setting, {"": measured}, repeats=1 if setting.quick else 3, warmup=0)[""]
        found.append(speed(f"growth.evaluated.{count}", times, count, "features and kernel distance"))
    return found


def _samples(setting: Setting) -> list[Metric]:
    """Milliseconds in which the samples of a micro-batch are chosen out of so many, after an epoch's first."""
    found = []
    for power in (4, 5) if setting.quick else (4, 5, 6, 7):
        choose = partial(epoch_indices, samples=10**power, start=64, count=64, seed=SEED)
        times = timed(setting, {"": choose}, repeats=5, warmup=1)[""]
        value = median(times)
        found.append(
            Metric(
                f"growth.samples.1e{power}", value, "ms", len(times), min(times), max(times), "least, most"
            )
        )
    return found


def _workers(setting: Setting) -> Metric:
    """Two processes of one thread each, of linear."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return efficiency(setting)
    finally:
        torch.set_num_threads(threads)
