"""Stable Diffusion 1.5's networks at full size, with random weights; nothing of the export is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from artifacts_schema.architecture import ArchitectureSpec
from steps.latency.memory import small_decoder_like
from steps.models.base import BaseModel
from steps.training.randomness import spawn
from steps.unet.architecture import named_spec, to_payload
from steps.unet.blocks import SD15_UNET_CONFIG
from steps.unet.evolved import EvolvedUNet

TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "eos_token_id": 2,
}
MICRO_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_VAE_WIDTHS = (128, 256, 512, 512)


def new_unet(architecture: str, geometry: dict[str, Any]) -> tuple[nn.Module, str]:
    """A UNet as it is initialised, and the schema of its weights."""
    if architecture == "base":
        return UNet2DConditionModel(**geometry), "diffusers.UNet2DConditionModel"
    payload = to_payload(named_spec(architecture, geometry))
    return EvolvedUNet(**geometry, architecture=payload), "snapfusion.EvolvedUNet"


def meta_base(*, micro: bool) -> BaseModel:
    """Shapes without weights, for what only counts."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(micro=micro))
        vae = AutoencoderKL(**decoder_config(micro=micro))
        text: Any = CLIPTextModel(CLIPTextConfig(**TEXT | (MICRO_TEXT if micro else {})))
    tokens: Any = SimpleNamespace(model_max_length=77)
    for network in (unet, vae, text):
        network.eval().requires_grad_(False)
    return BaseModel(Path("sd15"), unet, vae, text, tokens, {}, "epsilon")


def random_weights(name: str, *, micro: bool, spec: ArchitectureSpec | None = None) -> Any:
    """A network at full size (or a micro one) in evaluation mode, made without the time and memory of an initialisation:
    `base`, `bk-sdm-base` (BK-SDM's pattern, arXiv 2305.15798), `evolvable` (the base as an EvolvedUNet), a named
    architecture, `decoder` (of the full width) or `small_decoder`; or the UNet of `spec`.
    """
    with torch.device("meta"):
        if spec is None:
            network = _network(name, micro)
        else:
            network = EvolvedUNet(**unet_config(micro=micro), architecture=to_payload(spec))
    return _filled(network, name)


def random_vae(*, micro: bool) -> Any:
    """The whole AutoencoderKL, likewise."""
    with torch.device("meta"):
        vae = AutoencoderKL(**decoder_config(micro=micro))
    return _filled(vae, "vae")


def _filled(network: Any, name: str) -> Any:
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(spawn(0, name))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:  # normalisations, and biases
                parameter.fill_(0.1)
            else:
                bound = parameter[0].numel() ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
    return network.eval().requires_grad_(False)


def _network(name: str, micro: bool) -> Any:
    geometry = unet_config(micro=micro)
    if name == "base":
        return UNet2DConditionModel(**geometry)
    if name == "bk-sdm-base":
        return UNet2DConditionModel(**geometry | {"layers_per_block": 1})
    if name == "evolvable":
        return EvolvedUNet(**geometry)
    if name in ("decoder", "small_decoder"):
        vae = AutoencoderKL(**decoder_config(micro=micro))
        return small_decoder_like(vae, 1.0 if name == "decoder" else 0.5)
    return new_unet(name, geometry)[0]


def unet_config(*, micro: bool) -> dict[str, Any]:
    """Stable Diffusion 1.5's UNet, or one of its topology."""
    if not micro:
        return dict(SD15_UNET_CONFIG)
    changes = {
        "sample_size": 8,
        "block_out_channels": (8, 16, 16, 16),
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return SD15_UNET_CONFIG | changes


def decoder_config(*, micro: bool) -> dict[str, Any]:
    """Its AutoencoderKL."""
    return {
        "block_out_channels": (8, 8, 16, 16) if micro else _VAE_WIDTHS,
        "norm_num_groups": 4 if micro else 32,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 64 if micro else 512,
        "scaling_factor": 0.18215,
    }
