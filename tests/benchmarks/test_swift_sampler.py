"""Apple's sampler as restated here, against diffusers' where the two agree."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from benchmarks.swift_sampler import Drawn, dpm_of_apple, dpm_timesteps, metrics
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.distances import clustered_mean
from tests.steps.export.factories import SCHEDULE


def denoise(z: Tensor, t: int) -> Tensor:
    """A made-up estimate that depends on latent and time."""
    return torch.tanh(z) * (1.0 - t / 2000.0)


def of_diffusers(z: Tensor, steps: int, **options: Any) -> Tensor:
    scheduler = DPMSolverMultistepScheduler(
        **SCHEDULE, prediction_type="sample", timestep_spacing="linspace", solver_order=2, **options
    )
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(denoise(z, int(t)), t, z, return_dict=False)[0]
    return z


def apple(z: Tensor, steps: int) -> Tensor:
    return dpm_of_apple(denoise, NoiseSchedule.from_config(SCHEDULE), z, steps)


def test_timesteps_of_eight_steps() -> None:
    assert dpm_timesteps(8, train_timesteps=1000) == [999, 874, 749, 624, 500, 375, 250, 125]


def test_with_enough_steps_it_is_diffusers_solver() -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    # Ending at zero noise, diffusers' last step returns the clean latent of that step.
    torch.testing.assert_close(
        apple(z, 20), of_diffusers(z, 20, final_sigmas_type="zero"), rtol=1e-4, atol=1e-5
    )


def test_with_few_steps_the_last_but_one_differs() -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(apple(z, 8), of_diffusers(z, 8, final_sigmas_type="zero"), atol=1e-4)
    assert torch.allclose(apple(z, 2), denoise_twice(z), atol=1e-5)


def denoise_twice(z: Tensor) -> Tensor:
    """Two steps are both of first order: DDIM on 999 and 500."""
    schedule = NoiseSchedule.from_config(SCHEDULE)
    first, second = torch.tensor([999]), torch.tensor([500])
    x = denoise(z, 999)
    eps = (z - schedule.alpha(first) * x) / schedule.sigma(first)
    return denoise(schedule.alpha(second) * x + schedule.sigma(second) * eps, 500)


def test_differences_are_paired() -> None:
    def drawn(shift: float) -> Drawn:
        latents = torch.full((16, 4, 2, 2), shift)
        pictures = torch.full((16, 3, 4, 4), int(10 * shift), dtype=torch.uint8)
        groups = [str(number) for number in range(16)]
        distance = clustered_mean(np.linspace(0, 1, 16) - shift, groups)
        return Drawn(latents, pictures, np.linspace(0, 1, 16) + shift, distance, groups)

    rows = {row.name: row for row in metrics(drawn(0.0), drawn(1.0), drawn(0.5))}
    assert rows["swift_sampler.difference.latent_mse"].value == 1.0
    assert rows["swift_sampler.difference.clip"].value == pytest.approx(1.0)
    assert rows["swift_sampler.difference.clip"].low == pytest.approx(1.0)  # pairs do not vary
    assert rows["swift_sampler.difference.kernel_distance"].value == pytest.approx(-1.0)
    assert rows["swift_sampler.difference.picture_psnr_db"].value == pytest.approx(28.13, abs=0.01)
    assert rows["swift_sampler.difference.latent_mse_to_reference"].value == 0.0
