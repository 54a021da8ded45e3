"""Parts cover the UNet."""

import torch

from steps.latency.parts import unet_parts
from steps.latency.timing import CpuClock, time_parts
from steps.unet.evolved import EvolvedUNet
from tests.factories import tiny_inputs, tiny_unet


def test_parts_hold_every_parameter_once() -> None:
    unet = tiny_unet()
    for model in (unet, EvolvedUNet.from_unet(unet)):
        parts = unet_parts(model)
        assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
        assert len({part.id for part in parts}) == len(parts)


def test_every_part_runs_and_its_time_lies_within_the_whole() -> None:
    unet = tiny_unet()
    latents, timesteps, text = tiny_inputs()
    with torch.no_grad():
        found, whole = time_parts(unet_parts(unet), lambda: unet(latents, timesteps, text), CpuClock())
    assert all(value > 0.0 for value in found.values())
    assert sum(found.values()) < whole
    assert not unet.conv_in._forward_hooks
