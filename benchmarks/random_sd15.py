"""A Stable Diffusion 1.5 with random weights, in diffusers' layout, and what the export reads beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from artifacts_schema.references import WeightsRef
from benchmarks.published import ROOT
from steps.export.samples import Pictures
from steps.latency.memory import small_decoder_like
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.store import LocalStore
from steps.training.randomness import keyed_normal, spawn
from steps.unet.architecture import named_spec, to_payload
from steps.unet.blocks import SD15_UNET_CONFIG
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder

_TEXT = {
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
_MICRO_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_VAE_WIDTHS = (128, 256, 512, 512)


def write_random_base(folder: Path, *, architectures: Sequence[str], micro: bool, seed: int) -> None:
    """The folder `base`, and in the store of `folder` a UNet of every architecture and the half-width decoder."""
    store, base = LocalStore(folder / "store"), folder / "base"
    shutil.copytree(ROOT / "assets/base/tokenizer", base / "tokenizer", dirs_exist_ok=True)
    (base / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(base / "scheduler")
    torch.manual_seed(spawn(seed, "text_encoder"))
    CLIPTextModel(CLIPTextConfig(**(_TEXT | (_MICRO_TEXT if micro else {})))).save_pretrained(
        base / "text_encoder"
    )
    torch.manual_seed(spawn(seed, "vae"))
    vae = AutoencoderKL(**decoder_config(micro=micro))
    vae.save_pretrained(base / "vae")
    small = SmallDecoder.cut_from(vae, width_fraction=0.5)
    _keep(folder, "small_decoder", save_model(store, small, schema="snapfusion.SmallDecoder"))
    del vae, small
    geometry = unet_config(micro=micro)
    for architecture in architectures:
        torch.manual_seed(spawn(seed, "unet"))
        unet, schema = _unet(architecture, geometry)
        _keep(folder, architecture, save_model(store, unet, schema=schema))
        del unet
    # Every base folder has a UNet; what is exported is another one, so that this one's weights are never read.
    (base / "unet").mkdir(exist_ok=True)
    with torch.device("meta"):
        UNet2DConditionModel(**geometry).save_config(base / "unet")
    (base / "unet/diffusion_pytorch_model.safetensors").touch()


def stored(folder: Path, name: str) -> WeightsRef:
    """Weights that `write_random_base` has left."""
    return WeightsRef.model_validate_json((folder / f"{name}.json").read_text())


def random_pictures(base: BaseModel, *, seed: int) -> Pictures:
    """One caption with latents of unit variance."""
    noise = keyed_normal(base.latent_shape, seed=seed, name="full_size", iteration=0, indices=torch.arange(1))
    return Pictures(("woman surfing",), noise)


def _keep(folder: Path, name: str, ref: WeightsRef) -> None:
    (folder / f"{name}.json").write_text(ref.model_dump_json())


def _unet(architecture: str, geometry: dict[str, Any]) -> tuple[nn.Module, str]:
    if architecture == "base":
        return UNet2DConditionModel(**geometry), "diffusers.UNet2DConditionModel"
    payload = to_payload(named_spec(architecture, geometry))
    return EvolvedUNet(**geometry, architecture=payload), "snapfusion.EvolvedUNet"


def random_weights(name: str, *, micro: bool) -> Any:
    """A network at full size (or a micro one) in evaluation mode, made without the time and memory of an initialisation:
    `base`, `bk-sdm-base` (BK-SDM's pattern, arXiv 2305.15798), `evolvable` (the base as an EvolvedUNet), a named
    architecture, `decoder` (of the full width) or `small_decoder`.
    """
    with torch.device("meta"):
        network = _network(name, micro)
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
    return _unet(name, geometry)[0]


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
