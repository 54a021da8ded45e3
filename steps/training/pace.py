"""The pace of a training: its learning rate, the time between checkpoints, and how fast it is."""

import math
import time
from dataclasses import dataclass, field

from artifacts_schema.stage_configs import TrainingConfig

_MOST_SHARE = 0.03  # of a training's time may go into writing checkpoints


def learning_rate_factor(iteration: int, training: TrainingConfig, start: int = 0) -> float:
    """Factor on the learning rate at a 0-based iteration: linear warm-up from `start`, times constant or cosine.

    The cosine is that of the whole training; the optimizer's moments begin at `start`, and so does the warm-up. It
    takes the last `cosine_iterations`, so that a training can go on at a constant rate for as long as there is time
    and be ended by setting `iterations`.
    """
    warmup = training.warmup_iterations
    ramp = min(1.0, (iteration - start + 1) / (warmup + 1))
    if training.schedule == "constant":
        return ramp
    span = max(1, min(training.iterations - warmup, training.cosine_iterations or training.iterations))
    progress = min(1.0, max(0.0, (iteration - (training.iterations - span)) / span))
    low = training.final_learning_rate_fraction
    return ramp * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def pause_after_checkpoint(interval_s: float, spent_s: float) -> float:
    """Seconds until the next checkpoint: the interval, or longer where writing one is so slow that it would take more
    than 3 % of the time. An interval below a second asks for checkpoints at any price.
    """
    return interval_s if interval_s < 1.0 else max(interval_s, spent_s / _MOST_SHARE)


@dataclass
class Speed:
    """Images per second of every logging interval; varies between runs and belongs to no identity."""

    values: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _images: int = 0

    def add(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def leave_out(self, seconds: float) -> None:
        """Take time that went into something else out of the present interval."""
        self._since += seconds

    def close_interval(self) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        speed = self._images / max(now - self._since, 1e-9)
        self.values.append(speed)
        self._since, self._images = now, 0
        return speed
