"""The noise schedule and the N-step grids."""

import numpy as np
import pytest
import torch

from steps.diffusion.schedule import CLEAN, NoiseSchedule, grid_timesteps
from steps.files.errors import ConfigError
from tests.steps.diffusion.fakes import SD_SCHEDULE


def test_alpha_and_sigma_follow_stable_diffusions_schedule() -> None:
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    power = np.cumprod(1 - betas)
    t = torch.tensor([0, 10, 500, 999])
    np.testing.assert_allclose(schedule.alpha(t).flatten().numpy(), np.sqrt(power[t.numpy()]), rtol=1e-4)
    np.testing.assert_allclose(schedule.sigma(t).flatten().numpy(), np.sqrt(1 - power[t.numpy()]), rtol=1e-4)
    assert schedule.alpha(t).shape == (4, 1, 1, 1)
    # What the choice of v-prediction rests on: an eps error at t = 999 is multiplied by 14.6.
    assert 1 / schedule.alpha(t)[-1].item() == pytest.approx(14.6, abs=0.05)


def test_the_clean_latent_has_no_noise() -> None:
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    clean = torch.tensor([CLEAN])
    assert schedule.alpha(clean).item() == 1.0
    assert schedule.sigma(clean).item() == 0.0


@pytest.mark.parametrize("t", [-2, 1000])
def test_timesteps_outside_the_schedule_are_refused(t: int) -> None:
    with pytest.raises(ValueError, match="timesteps lie in"):
        NoiseSchedule.from_config(SD_SCHEDULE).alpha(torch.tensor([t]))


def test_timesteps_on_a_device_stay_there() -> None:
    """A device whose tensors have no values: whoever looked at them, or took them to the CPU, would fail."""
    schedule, t = NoiseSchedule.from_config(SD_SCHEDULE), torch.empty(3, dtype=torch.int64, device="meta")
    for value in (schedule.alpha(t), schedule.sigma(t)):
        assert (value.device.type, value.shape, value.dtype) == ("meta", (3, 1, 1, 1), torch.float32)


def test_known_grids() -> None:
    assert grid_timesteps(8, train_timesteps=1000) == [999, 874, 749, 624, 499, 374, 249, 124]
    assert grid_timesteps(4, train_timesteps=1000) == [999, 749, 499, 249]
    assert grid_timesteps(16, train_timesteps=1000)[:4] == [999, 937, 874, 811]
    assert grid_timesteps(1000, train_timesteps=1000) == list(range(999, -1, -1))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32, 64, 5, 25, 50, 125])
def test_a_grid_is_every_second_point_of_the_grid_twice_as_fine(steps: int) -> None:
    fine = grid_timesteps(2 * steps, train_timesteps=1000)
    assert fine[::2] == grid_timesteps(steps, train_timesteps=1000)
    assert all(a > b for a, b in zip(fine, fine[1:], strict=False))


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_grids_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and 1000"):
        grid_timesteps(steps, train_timesteps=1000)
