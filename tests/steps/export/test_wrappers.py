import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from steps.diffusion.schedule import NoiseSchedule
from steps.export.wrappers import (
    RUNTIME_SCALING_FACTOR,
    DecoderForExport,
    TextEncoderForExport,
    UNetForExport,
)
from steps.files.errors import ExportError
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder
from tests.steps.export.factories import SCHEDULE, export_base


def _alpha_sigma(t: int) -> tuple[float, float]:
    """From the definition, in float64 throughout."""
    betas = np.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2
    power = float(np.cumprod(1 - betas)[t])
    return power**0.5, (1 - power) ** 0.5


@pytest.mark.parametrize("t", [999, 499, 124])
def test_velocity_becomes_noise(t: int) -> None:
    base = export_base()
    unet = EvolvedUNet.from_unet(base.unet).eval()
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 12)
    timestep = torch.tensor([t, t], dtype=torch.float16)
    wrapper = UNetForExport(unet, NoiseSchedule.from_config(SCHEDULE))
    with torch.no_grad():
        found = wrapper(sample, timestep.float(), text.transpose(1, 2).unsqueeze(2))
        exact = copy.deepcopy(unet)
        nn.Module.double(exact)
        velocity = exact(sample.double(), torch.tensor([t, t]), text.double()).sample
    alpha, sigma = _alpha_sigma(t)
    torch.testing.assert_close(found.double(), sigma * sample.double() + alpha * velocity, rtol=0, atol=2e-5)


def test_each_sample_has_its_own_timestep() -> None:
    class Ones(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (torch.ones_like(sample),)

    wrapper = UNetForExport(Ones(), NoiseSchedule.from_config(SCHEDULE))
    found = wrapper(torch.zeros(2, 4, 2, 2), torch.tensor([999.0, 124.0]), torch.zeros(2, 12, 1, 7))
    expected = torch.tensor([_alpha_sigma(999)[0], _alpha_sigma(124)[0]])
    torch.testing.assert_close(found[:, 0, 0, 0], expected.float(), rtol=1e-4, atol=0)


def test_epsilon_unet_is_left_alone() -> None:
    unet = export_base().unet
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 12)
    with torch.no_grad():
        found = UNetForExport(unet, None)(
            sample, torch.tensor([499.0, 499.0]), text.transpose(1, 2).unsqueeze(2)
        )
        torch.testing.assert_close(found, unet(sample, 499, text).sample)


def test_schedule_too_long_for_float16_is_refused() -> None:
    schedule = NoiseSchedule.from_config({**SCHEDULE, "num_train_timesteps": 4000})
    with pytest.raises(ExportError, match="4000"):
        UNetForExport(nn.Identity(), schedule)


def test_text_encoder_takes_ids_as_floats() -> None:
    text_encoder = export_base().text_encoder
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    hidden, pooled = TextEncoderForExport(text_encoder)(ids.float())
    expected = text_encoder(ids)
    torch.testing.assert_close(hidden, expected.last_hidden_state)
    torch.testing.assert_close(pooled, expected.pooler_output)


def _decoders() -> list[Any]:
    full = export_base().vae
    options = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    plain = AutoencoderKL(
        **options,
        latent_channels=4,
        use_post_quant_conv=False,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return [full, SmallDecoder.cut_from(full, width_fraction=0.5), plain]


@pytest.mark.parametrize("index", range(3), ids=["AutoencoderKL", "SmallDecoder", "without post_quant_conv"])
@pytest.mark.parametrize("scaling_factor", [0.18215, 0.13025, 0.9])
def test_scaling_factor_is_folded(index: int, scaling_factor: float) -> None:
    vae = _decoders()[index].eval()
    before = copy.deepcopy(vae.state_dict())
    latents = scaling_factor * torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        wrapper = DecoderForExport(vae, scaling_factor)
        found = wrapper(latents / RUNTIME_SCALING_FACTOR)  # as the runtime does
        expected = vae.decode(latents / scaling_factor).sample  # as it should be
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert wrapper.factor == RUNTIME_SCALING_FACTOR / scaling_factor
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


def test_scaling_factor_must_be_positive() -> None:
    with pytest.raises(ExportError, match="scaling_factor"):
        DecoderForExport(export_base().vae, 0.0)
