"""Counted multiply-accumulates against numbers derived by hand, and against those of the counter before this one."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from steps.export.attention import SplitEinsumProcessor
from steps.latency.macs import count_macs
from steps.latency.parts import unet_parts
from steps.models.base import BaseModel, load_base
from steps.unet.architecture import named_spec, to_payload
from steps.unet.blocks import SD15_UNET_CONFIG
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder
from tests.factories import tiny_inputs, tiny_unet

BASE = Path(__file__).parents[3] / "assets/base"


@pytest.fixture(scope="module")
def embedded() -> BaseModel:
    return load_base(BASE)


def test_convolution_and_linear_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Linear(16, 5, bias=False))
    total, _ = count_macs(lambda: model(torch.zeros(2, 3, 4, 4)))
    assert total == 2 * 8 * 16 * (3 * 9) + 2 * 8 * 5 * 16


def test_attention_products_by_hand() -> None:
    unet = tiny_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    hidden, text = torch.zeros(2, 256, 8), torch.zeros(2, 7, 12)
    total, _ = count_macs(lambda: attention(hidden, encoder_hidden_states=text))
    projections = 2 * (256 * 8 * 8 + 2 * 7 * 12 * 8 + 256 * 8 * 8)
    products = 2 * 2 * 256 * 7 * 8
    assert total == projections + products


def test_parts_add_up_and_the_meta_device_gives_the_same() -> None:
    unet = tiny_unet()
    latents, timesteps, text = tiny_inputs()
    total, by_part = count_macs(lambda: unet(latents, timesteps, text), unet_parts(unet))
    assert sum(by_part.values()) == total
    # x (2, 8, 16, 16) goes through two convolutions, the time embedding (2, 32) through a linear layer.
    assert by_part["down.0.resnets.0"] == 2 * (2 * 8 * 256 * (8 * 9)) + 2 * 32 * 8
    meta = tiny_unet().to("meta")
    on_meta = [tensor.to("meta") for tensor in (latents, timesteps, text)]
    assert count_macs(lambda: meta(*on_meta), unet_parts(meta)) == (total, by_part)
    assert not unet.conv_in._forward_hooks and not unet.conv_in._forward_pre_hooks


# The numbers below were counted by hooks on convolutions, linear layers and attentions (until 55a3ad1 in this place).


@pytest.mark.parametrize("attention", ["original", "split_einsum"])
def test_embedded_unet(embedded: BaseModel, attention: str) -> None:
    unet = embedded.unet.to("meta")
    if attention == "split_einsum":
        unet.set_attn_processor(SplitEinsumProcessor())
    with torch.device("meta"):
        inputs = torch.zeros(2, *embedded.latent_shape), torch.zeros(2)
        text = torch.zeros(2, 77, unet.config.cross_attention_dim)
    assert count_macs(lambda: unet(*inputs, text))[0] == 461_798_912


def test_embedded_text_encoder(embedded: BaseModel) -> None:
    text_encoder = embedded.text_encoder.to("meta")
    ids = torch.zeros(2, 77, dtype=torch.long, device="meta")
    assert count_macs(lambda: text_encoder(ids))[0] == 133_253_120


@pytest.mark.parametrize(("small", "expected"), [(False, 805_539_840), (True, 205_639_680)])
def test_decoders(embedded: BaseModel, small: bool, expected: int) -> None:
    full = copy.deepcopy(embedded.vae)
    decoder = SmallDecoder.cut_from(full, width_fraction=0.5) if small else full
    decoder.to("meta")
    latent = torch.zeros(1, *embedded.latent_shape, device="meta")
    assert count_macs(lambda: decoder.decode(latent))[0] == expected


def test_evolved_unet_of_the_paper_at_its_size() -> None:
    payload = to_payload(named_spec("snapfusion-sd15", SD15_UNET_CONFIG))
    with torch.device("meta"):
        unet = EvolvedUNet(**SD15_UNET_CONFIG, architecture=payload)
        inputs = torch.zeros(2, 4, 64, 64), torch.zeros(2), torch.zeros(2, 77, 768)
    assert count_macs(lambda: unet(*inputs))[0] == 609_091_256_320
