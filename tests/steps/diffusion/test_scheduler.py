"""Our DDIM scheduler: equal to diffusers' where its steps meet the grid, different where they miss it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from steps.diffusion.schedule import NoiseSchedule, grid_timesteps, schedule_keys
from steps.diffusion.scheduler import GridDDIMScheduler
from tests.steps.diffusion.fakes import SD_SCHEDULE

MATCHING = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


def denoise(scheduler: DDIMScheduler, steps: int) -> Tensor:
    """Run a fixed nonlinear 'network' through the scheduler."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        z = scheduler.step(torch.sin(z + t / 300), t, z, return_dict=False)[0]
    return z


def pair(prediction_type: str) -> tuple[GridDDIMScheduler, DDIMScheduler]:
    ours = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type=prediction_type)
    theirs = DDIMScheduler(**schedule_keys(SD_SCHEDULE), **MATCHING, prediction_type=prediction_type)
    return ours, theirs


@pytest.mark.parametrize("steps", [8, 10, 25, 50])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_equals_diffusers_where_the_steps_divide_the_schedule(steps: int, prediction_type: str) -> None:
    ours, theirs = pair(prediction_type)
    a, b = denoise(ours, steps), denoise(theirs, steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize(("steps", "at_least"), [(16, 1e-3), (32, 1e-3), (64, 1e-2)])
def test_differs_from_diffusers_where_its_steps_miss_the_grid(steps: int, at_least: float) -> None:
    ours, theirs = pair("v_prediction")
    difference = (denoise(ours, steps) - denoise(theirs, steps)).abs().max()
    assert at_least < difference < 1.0


@pytest.mark.parametrize("steps", [8, 16, 32, 64, 50])
def test_steps_go_from_grid_point_to_grid_point_and_end_clean(steps: int) -> None:
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    x, eps = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type="v_prediction")
    scheduler.set_timesteps(steps)
    z = schedule.alpha(torch.tensor([999])) * x + schedule.sigma(torch.tensor([999])) * eps
    for k, t in enumerate(scheduler.timesteps):
        alpha, sigma = schedule.alpha(t.reshape(1)), schedule.sigma(t.reshape(1))
        torch.testing.assert_close(z, alpha * x + sigma * eps, atol=1e-4, rtol=1e-4)  # lies on the grid
        z = scheduler.step(alpha * eps - sigma * x, t, z).prev_sample
        assert k < steps
    torch.testing.assert_close(z, x, atol=1e-4, rtol=1e-4)


def test_sixteen_steps_land_on_874_and_not_on_875() -> None:
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type="v_prediction")
    scheduler.set_timesteps(16)
    assert scheduler.timesteps[1:3].tolist() == [937, 874]
    z = torch.ones(1, 1, 1, 1)
    landed = scheduler.step(torch.zeros_like(z), 937, z).prev_sample.item()
    expected = {}
    for t in (874, 875):
        now, then = scheduler.alphas_cumprod[937], scheduler.alphas_cumprod[t]
        expected[t] = ((now * then).sqrt() + ((1 - now) * (1 - then)).sqrt()).item()
    assert landed == pytest.approx(expected[874], abs=1e-6)
    assert landed != pytest.approx(expected[875], abs=1e-6)


def test_the_bases_own_settings_do_not_count(tmp_path: Path) -> None:
    base = DDIMScheduler(**SD_SCHEDULE)
    ours = GridDDIMScheduler.from_config(base.config, prediction_type="v_prediction")
    assert ours.config.clip_sample is False and ours.config.thresholding is False
    assert ours.config.set_alpha_to_one is True
    assert ours.config.timestep_spacing == "trailing"
    assert ours.config.prediction_type == "v_prediction"
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "GridDDIMScheduler"
    assert saved["clip_sample"] is False
    again = GridDDIMScheduler.from_pretrained(tmp_path)
    assert torch.equal(denoise(again, 16), denoise(ours, 16))


def test_without_a_configuration_the_noise_is_stable_diffusions() -> None:
    expected = DDIMScheduler(**SD_SCHEDULE).alphas_cumprod
    assert torch.equal(GridDDIMScheduler().alphas_cumprod, expected)


def test_a_timestep_off_the_grid_is_refused() -> None:
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type="epsilon")
    z = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(z, 999, z)
    scheduler.set_timesteps(16)
    with pytest.raises(ValueError, match="875 is not on the 16-step grid"):
        scheduler.step(z, 875, z)


def test_added_noise_is_that_of_diffusers() -> None:
    ours, theirs = pair("epsilon")
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(5)
        results.append(scheduler.step(z.sin(), 499, z, eta=0.7, generator=generator).prev_sample)
    torch.testing.assert_close(results[0], results[1])


def test_the_grid_does_not_depend_on_a_device_or_an_earlier_call() -> None:
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type="epsilon")
    scheduler.set_timesteps(50)
    scheduler.set_timesteps(8, device="cpu")
    assert scheduler.timesteps.tolist() == grid_timesteps(8, train_timesteps=1000)
