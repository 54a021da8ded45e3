"""A Stable Diffusion 1.5 with random weights, in diffusers' layout, and what the export reads beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from artifacts_schema.references import WeightsRef
from benchmarks.published import ROOT
from benchmarks.sd15_networks import MICRO_TEXT, TEXT, decoder_config, new_unet, unet_config
from steps.export.samples import Pictures
from steps.models.base import BaseModel
from steps.models.stored import save_model
from steps.store import LocalStore
from steps.training.randomness import keyed_normal, spawn
from steps.unet.small_decoder import SmallDecoder


def write_random_base(folder: Path, *, architectures: Sequence[str], micro: bool, seed: int) -> None:
    """The folder `base`, and in the store of `folder` a UNet of every architecture and the half-width decoder."""
    store, base = LocalStore(folder / "store"), folder / "base"
    shutil.copytree(ROOT / "assets/base/tokenizer", base / "tokenizer", dirs_exist_ok=True)
    (base / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(base / "scheduler")
    torch.manual_seed(spawn(seed, "text_encoder"))
    CLIPTextModel(CLIPTextConfig(**(TEXT | (MICRO_TEXT if micro else {})))).save_pretrained(
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
        unet, schema = new_unet(architecture, geometry)
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
