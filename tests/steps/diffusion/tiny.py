"""A base of a few thousand weights, and what a stage is given to work on it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from steps.diffusion.parameterization import PredictionType
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.store import LocalStore
from tests.steps.diffusion.fakes import SD_SCHEDULE, FakeData

LATENT_SHAPE = (4, 8, 8)


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        cross_attention_dim=5,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def tiny_vae(
    block_out_channels: tuple[int, ...] = (8, 16),
    norm_num_groups: int = 4,
    mid_block_add_attention: bool = True,
) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
        layers_per_block=1,
        norm_num_groups=norm_num_groups,
        mid_block_add_attention=mid_block_add_attention,
        sample_size=16,
        scaling_factor=0.5,
        force_upcast=False,
    ).eval()


def tiny_base(folder: Path, prediction_type: PredictionType = "epsilon") -> BaseModel:
    unet, vae = tiny_unet(), tiny_vae()
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    for model in (unet, vae):
        model.requires_grad_(False)
    # Text encoder and tokenizer are not read by the stages tested with this base: their data come encoded.
    return BaseModel(folder, unet, vae, None, None, dict(SD_SCHEDULE), prediction_type)  # type: ignore[arg-type]


def tiny_data(samples: int = 16) -> FakeData:
    return FakeData(samples=samples, shape=LATENT_SHAPE)


def stage_context(folder: Path, stage: str, seed: int = 1) -> StageContext:
    work = folder / "work" / stage
    work.mkdir(parents=True, exist_ok=True)
    return StageContext(stage=stage, store=LocalStore(folder / "store"), work=work, seed=seed)
