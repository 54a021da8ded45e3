"""Counted multiply-accumulates against numbers derived by hand."""

import torch
from torch import nn

from steps.latency.macs import count_macs
from steps.latency.parts import unet_parts
from tests.steps.unet.factories import tiny_inputs, tiny_unet


def test_convolution_and_linear_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(16, 5, bias=False))
    total, _ = count_macs(model, lambda: model(torch.zeros(2, 3, 4, 4)))
    assert total == 2 * 8 * 16 * (3 * 9) + 2 * 8 * 5 * 16


def test_attention_products_by_hand() -> None:
    unet = tiny_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    hidden, text = torch.zeros(2, 256, 8), torch.zeros(2, 7, 12)
    total, _ = count_macs(attention, lambda: attention(hidden, encoder_hidden_states=text))
    projections = 2 * (256 * 8 * 8 + 2 * 7 * 12 * 8 + 256 * 8 * 8)
    products = 2 * 2 * 256 * 7 * 8
    assert total == projections + products


def test_parts_add_up_and_the_meta_device_gives_the_same() -> None:
    unet = tiny_unet()
    latents, timesteps, text = tiny_inputs()
    total, by_part = count_macs(unet, lambda: unet(latents, timesteps, text), unet_parts(unet))
    assert sum(by_part.values()) == total
    meta = tiny_unet().to("meta")
    on_meta = [tensor.to("meta") for tensor in (latents, timesteps, text)]
    assert count_macs(meta, lambda: meta(*on_meta), unet_parts(meta)) == (total, by_part)
    assert not unet.conv_in._forward_hooks
