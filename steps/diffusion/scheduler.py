"""DDIM on our own N-step grid, as a diffusers scheduler.

diffusers' DDIMScheduler steps from t to t - T // N, which misses the next grid point where N does not divide
T (at 16 of 1000 steps: 937 to 875 instead of 874). A distilled student was trained to land on the grid. This class
gives a StableDiffusionPipeline the step (`steps.diffusion.ddim`) that trainer, evaluator and bundle check make, too.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self, cast, get_args

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from steps.diffusion.ddim import step as ddim_transition
from steps.diffusion.parameterization import PredictionType
from steps.diffusion.schedule import NoiseSchedule, schedule_keys
from steps.files.errors import ConfigError

# diffusers loads a scheduler of a foreign module only if it finds its own base class in that module.
__all__ = ["GridDDIMScheduler", "SchedulerMixin"]

_FIXED: dict[str, bool | str | int] = {
    "clip_sample": False,
    "thresholding": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
    # Without effect on this grid; StableDiffusionPipeline warns about any other value.
    "steps_offset": 1,
}


class GridDDIMScheduler(DDIMScheduler):  # type: ignore[misc]  # diffusers is untyped
    """Deterministic DDIM whose steps go from one grid point to the next and from the last one to the clean
    latent.

    Works as `scheduler=` of a StableDiffusionPipeline. The noise schedule and prediction type come from the
    configuration; spacing, clipping and final step are fixed, whatever a loaded configuration says.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            **_FIXED,
        )
        if prediction_type not in get_args(PredictionType):
            raise ConfigError(f"prediction_type must be epsilon or v_prediction, found {prediction_type!r}")
        self._kind = cast(PredictionType, prediction_type)
        self._schedule = NoiseSchedule(self.alphas_cumprod.double())

    @classmethod
    def for_base(cls, scheduler_config: Mapping[str, object], *, prediction_type: PredictionType) -> Self:
        """On a base's noise schedule, for a network of the given prediction type."""
        scheduler: Self = cls(**schedule_keys(scheduler_config), prediction_type=prediction_type)
        return scheduler

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers; only the noise schedule and prediction type of `config` count."""
        kept = schedule_keys(config)
        if "prediction_type" in config:
            kept["prediction_type"] = config["prediction_type"]
        return super().from_config(kept, return_unused_kwargs, **kwargs)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Use the grid of `num_inference_steps` steps. Raises ConfigError when there is none."""
        points = self._schedule.grid_to_clean(num_inference_steps).tolist()
        self.num_inference_steps = num_inference_steps
        self._next = dict(pairwise(points))
        self.timesteps = torch.tensor(points[:-1], device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """From the grid point `timestep` to the next; `eta` > 0 adds noise as in DDIM eq. 16.

        `use_clipped_model_output` has no meaning here, as nothing is clipped. Raises ValueError for a
        timestep that is not on the grid.
        """
        t, following = self._on_grid(timestep)
        now, then = (torch.full((len(sample),), point, device=sample.device) for point in (t, following))
        z, x, eps = ddim_transition(
            self._schedule, model_output, z=sample, t=now, t_next=then, kind=self._kind
        )
        if eta > 0:
            if variance_noise is None:
                shape, device, dtype = model_output.shape, model_output.device, model_output.dtype
                variance_noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            spread = eta * self._get_variance(t, following).sqrt().item()
            sigma = self._schedule.sigma(then)
            direction = (sigma.square() - spread**2).clamp(min=0).sqrt()
            z = z + (direction - sigma) * eps + spread * variance_noise
        # The schedule is float32, which makes all of this float32; the pipeline goes on in the sample's type.
        z, x = z.to(sample.dtype), x.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=z, pred_original_sample=x) if return_dict else (z, x)

    def _on_grid(self, timestep: int | Tensor) -> tuple[int, int]:
        """The timestep as a number, and the grid point after it."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        t = int(timestep)
        if t not in self._next:
            raise ValueError(
                f"timestep {t} is not on the {self.num_inference_steps}-step grid {list(self._next)}"
            )
        return t, self._next[t]
