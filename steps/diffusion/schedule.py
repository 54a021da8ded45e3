"""The noise schedule, alpha(t) and sigma(t) of z_t = alpha(t) x + sigma(t) eps, and its N-step grids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from steps.files.errors import ConfigError

CLEAN = -1
"""The timestep after the last one: the clean latent, alpha = 1 and sigma = 0."""

_SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def schedule_keys(scheduler_config: Mapping[str, object]) -> dict[str, object]:
    """Those entries of a diffusers scheduler configuration that define the noise schedule."""
    return {key: scheduler_config[key] for key in _SCHEDULE_KEYS if key in scheduler_config}


def grid_timesteps(steps: int, *, train_timesteps: int) -> list[int]:
    """The N-step grid round(T - k T / N) - 1 for k = 0 .. N-1, falling; the last step then goes to the clean
    latent.

    Halves round to even, as diffusers' trailing spacing does. A grid is every second point of the grid of
    twice as many steps. Raises ConfigError unless 1 <= steps <= train_timesteps.
    """
    if not 1 <= steps <= train_timesteps:
        raise ConfigError(f"a sampling grid has between 1 and {train_timesteps} steps, found {steps}")
    return [round(train_timesteps - k * train_timesteps / steps) - 1 for k in range(steps)]


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha(t) and sigma(t) at timesteps 0 .. T-1 and at CLEAN. `alphas_cumprod` has shape (T,), float64."""

    alphas_cumprod: Tensor
    # alpha and sigma at CLEAN, 0 .. T-1 on each device that asked: timesteps on a GPU never wait for the CPU.
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_config(cls, scheduler_config: Mapping[str, object]) -> Self:
        """The schedule of a diffusers scheduler configuration, whatever else that configuration says."""
        scheduler = DDIMScheduler(**schedule_keys(scheduler_config))
        return cls(scheduler.alphas_cumprod.double())

    @property
    def train_timesteps(self) -> int:
        """T, the number of timesteps the base was trained with."""
        return len(self.alphas_cumprod)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal share at timesteps `t` (n,), shape (n, 1, 1, 1), float32 on t's device; 1 at CLEAN."""
        return self._at(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """Noise share at timesteps `t` (n,), shape (n, 1, 1, 1), float32 on t's device; 0 at CLEAN."""
        return self._at(t)[1]

    def grid(self, steps: int) -> Tensor:
        """The N-step grid, shape (steps,), int64; see `grid_timesteps`."""
        return torch.tensor(grid_timesteps(steps, train_timesteps=self.train_timesteps))

    def grid_to_clean(self, steps: int) -> Tensor:
        """The N-step grid with CLEAN after its last point, shape (steps + 1,): step k goes from [k] to [k +
        1].
        """
        return torch.cat([self.grid(steps), torch.tensor([CLEAN])])

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `t`. Raises ValueError outside of [CLEAN, T) on a CPU; a GPU stops by itself."""
        if t.device.type == "cpu" and bool(((t < CLEAN) | (t >= self.train_timesteps)).any()):
            raise ValueError(f"timesteps lie in [{CLEAN}, {self.train_timesteps}), found {t.tolist()}")
        if t.device not in self._tables:
            power = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod.cpu()])
            alpha, sigma = power.sqrt().float(), (1.0 - power).sqrt().float()
            self._tables[t.device] = (alpha.to(t.device), sigma.to(t.device))
        # Not `table[t]`, which would take a timestep under CLEAN for one from the end.
        alpha, sigma = (table.index_select(0, t - CLEAN) for table in self._tables[t.device])
        return alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
