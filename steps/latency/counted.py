"""What a latent costs on a machine that is not at hand: multiply-accumulates, counted from shapes alone, over its speed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from steps.files.errors import BaseModelError
from steps.latency.fit import Shapes
from steps.latency.hardware import Hardware
from steps.latency.macs import count_macs
from steps.unet.architecture import list_units
from steps.unet.blocks import SD15_UNET_CONFIG, full_spec

_FLOPS = 2  # of a multiply-accumulate

SD15 = Shapes(
    unet=SD15_UNET_CONFIG,
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
    tokens=77,
)
"""Stable Diffusion 1.5, which a plan is made for where the base is not there yet."""


def shapes_of(folder: Path) -> Shapes:
    """Of a base's folder, from its configurations. Raises BaseModelError for one that cannot be read."""
    try:
        unet, vae, text = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("unet", "vae", "text_encoder")
        )
        return Shapes(unet=unet, vae=vae, tokens=int(text["max_position_embeddings"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"a configuration of the base {folder} cannot be read: {error}") from error


def counted(shapes: Shapes) -> dict[str, float]:
    """Multiply-accumulates of one latent (`unet_macs`, `decoder_macs`, `encoder_macs`), parameters and removable units; sides
    of a picture, and numbers in its moments and in a caption's embedding.

    The keys that `steps.latency.unit_costs` counts have its names. The text encoder is left out: a hundredth of the
    picture's.
    """
    unet_config: dict[str, Any] = dict(shapes.unet)
    side = int(unet_config["sample_size"])
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(dict(shapes.vae))
        z = torch.empty(1, int(unet.config.in_channels), side, side)
        text = torch.empty(1, shapes.tokens, int(unet.config.cross_attention_dim))
        pixels = side * 2 ** (len(vae.config.block_out_channels) - 1)
        picture = torch.empty(1, 3, pixels, pixels)
        unet_macs, _ = count_macs(lambda: unet(z, torch.empty(1), text))
        decoder_macs, _ = count_macs(lambda: vae.decode(z))
        encoder_macs, _ = count_macs(lambda: vae.encode(picture))
    return {
        "unet_macs": float(unet_macs),
        "decoder_macs": float(decoder_macs),
        "encoder_macs": float(encoder_macs),
        "unet_parameters": float(sum(p.numel() for p in unet.parameters())),
        "decoder_parameters": float(sum(p.numel() for p in vae.decoder.parameters())),
        "units": float(len(list_units(full_spec(unet.config), unet.config))),
        "image_size": float(pixels),
        "moments": float(2 * z.numel()),
        "embedding": float(text.numel()),
    }


def costs_on(hardware: Hardware, counts: Mapping[str, float]) -> dict[str, float]:
    """What `steps.latency.unit_costs` would measure there, as far as it can be told: seconds by precision."""
    unet, decoder, encoder = (_FLOPS * counts[f"{part}_macs"] for part in ("unet", "decoder", "encoder"))
    return {
        "unet_forward_s": unet / hardware.fp32,
        "unet_forward_bf16_s": unet / hardware.bf16,
        "decoder_forward_s": decoder / hardware.fp32,
        "decoder_forward_bf16_s": decoder / hardware.bf16,
        "encoder_forward_s": encoder / hardware.fp32,
        "unet_activation_bytes": 0.0,  # memory is counted from shapes, in `steps.latency.fit`
        "decoder_activation_bytes": 0.0,
        **{name: counts[name] for name in ("unet_parameters", "decoder_parameters", "units")},
    }
