"""Bookkeeping of blocks, checked against diffusers' own modules."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from steps.files.errors import ArchitectureError
from steps.unet.blocks import (
    SD15_UNET_CONFIG,
    config_hash,
    full_spec,
    input_shapes,
    list_blocks,
    module_path,
    normalise,
)
from tests.factories import TINY_CONFIG, tiny_inputs, tiny_unet


def test_sd15_has_16_attention_and_22_resnet_blocks() -> None:
    blocks = list_blocks(SD15_UNET_CONFIG)
    assert sum(block.kind == "attention" for block in blocks) == 16
    assert sum(block.kind == "resnet" for block in blocks) == 22
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET_CONFIG)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    for block in blocks:
        module = unet.get_submodule(module_path(block.id))
        assert module.in_channels == block.in_channels, block.id


def test_sd15_up_resnets_take_the_skips_last_in_first_out() -> None:
    sources = {block.id: block.skip_source for block in list_blocks(SD15_UNET_CONFIG) if block.skip_source}
    assert len(sources) == 12
    assert sources["up.0.resnets.0"] == "down.3.resnets.1"
    assert sources["up.0.resnets.2"] == "down.2.downsamplers.0"
    assert sources["up.1.resnets.0"] == "down.2.resnets.1"
    assert sources["up.3.resnets.1"] == "down.0.resnets.0"
    assert sources["up.3.resnets.2"] == "conv_in"


@pytest.mark.parametrize("layers", [1, 2, (1, 2, 3, 2)])
def test_shapes_are_those_of_a_real_forward(layers: int | tuple[int, ...]) -> None:
    unet = tiny_unet(layers_per_block=layers)
    config = {**TINY_CONFIG, "layers_per_block": layers}
    seen: dict[str, tuple[int, ...]] = {}
    blocks = list_blocks(config)
    for block in blocks:
        module = unet.get_submodule(module_path(block.id))
        module.register_forward_pre_hook(
            lambda _, inputs, name=block.id: seen.__setitem__(name, tuple(inputs[0].shape))
        )
    latents, timesteps, text = tiny_inputs()
    with torch.no_grad():
        unet(latents, timesteps, text)
    expected = {
        block.id: input_shapes(block, normalise(config), batch=2, latent_size=(16, 16), tokens=7)[0]
        for block in blocks
    }
    assert seen == expected


def test_hash_ignores_picture_size_and_left_out_defaults_but_not_widths() -> None:
    assert config_hash({**TINY_CONFIG, "sample_size": 64, "act_fn": "silu"}) == config_hash(TINY_CONFIG)
    assert config_hash({**TINY_CONFIG, "block_out_channels": [8, 16, 24, 24]}) == config_hash(TINY_CONFIG)
    assert config_hash({**TINY_CONFIG, "block_out_channels": (8, 16, 16, 24)}) != config_hash(TINY_CONFIG)
    assert full_spec(TINY_CONFIG).base_config == config_hash(TINY_CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"class_embed_type": "timestep"},
        {"dropout": 0.1},
        {"mid_block_type": "UNetMidBlock2D"},
        {"down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D")},
    ],
    ids=["class embedding", "dropout", "other middle", "other block type"],
)
def test_unsupported_base_is_refused_by_its_key(change: dict[str, object]) -> None:
    (key,) = change
    with pytest.raises(ArchitectureError, match=key):
        list_blocks({**TINY_CONFIG, **change})
