"""Upper bounds of what trainings need, and the memory there is. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path

import psutil

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.parts import STARTS_FROM
from artifacts_schema.stage_configs import TrainingConfig

RESERVE = 1.10
"""Factor on what is counted: fragmentation, and what libraries keep for themselves. Ours, not yet held against a GPU."""

TRAINED = tuple(STARTS_FROM)
"""The stages that train."""

_FLOAT = 4
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def training_of(config: SnapFusionConfig, stage: str) -> TrainingConfig:
    """The training section of a stage."""
    training: TrainingConfig = getattr(config, stage).training
    return training


def passes(stage: str, config: SnapFusionConfig) -> int:
    """How often a sample goes through the trained model in one step: guided twice, and once more for L_ori."""
    if stage not in ("teacher_16", "student_16", "student_8"):
        return 1
    guided = stage != "student_16" and config.step_distillation.cfg_probability > 0
    return (2 if guided else 1) + (1 if config.step_distillation.gamma > 0 else 0)


def surely_fits(config: SnapFusionConfig, costs: Mapping[str, float], available: float) -> bool:
    """True where even a rough upper bound fits, so that nothing has to be told exactly. `costs` are
    `steps.latency.unit_costs`'.
    """
    most = 0.0
    for stage in (stage for stage in TRAINED if stage not in config.run.skip):
        training = training_of(config, stage)
        part = "decoder" if stage == "decoder_distillation" else "unet"
        samples = training.batch_size * passes(stage, config)
        kept = 2.0 * samples * costs[f"{part}_activation_bytes"]  # and as much again on the way
        most = max(most, 8 * _FLOAT * costs["unet_parameters"] + kept)
    return RESERVE * most <= available


def host_memory() -> float:
    """Bytes of memory that this process may use: the machine's, or the container's where that is less."""
    total = float(psutil.virtual_memory().total)
    try:
        return min(total, float(_CONTAINER.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one that may use everything ("max")
        return total
