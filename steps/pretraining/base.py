"""Training of the embedded eps-prediction UNet, and the base folder in diffusers' layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from artifacts_schema.pretraining import UNetConfig
from steps.data.prepared import PreparedData
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.files.progress import Progress
from steps.training.batch import Batch
from steps.training.loop import TrainingOutcome, train

SHARD = "16MB"
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""Stable Diffusion 1's scheduler configuration."""


def new_unet(
    config: UNetConfig, *, latent_size: int, latent_channels: int, text_width: int
) -> UNet2DConditionModel:
    """Random weights from the configuration's own seed; Stable Diffusion 1's topology."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=config.widths,
            layers_per_block=2,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=text_width,
            attention_head_dim=config.heads,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )


def train_unet(
    config: UNetConfig,
    unet: UNet2DConditionModel,
    data: PreparedData,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
) -> TrainingOutcome:
    """Plain eps prediction: mean squared error at t uniform over all timesteps, some captions left out."""
    sampling = Sampling(
        data, NoiseSchedule.from_config(SCHEDULER), config.caption_dropout, torch.device("cpu")
    )
    return train(
        unet,
        NoiseLoss(sampling),
        training=config.training,
        samples=data.size("train"),
        seed=seed,
        folder=folder,
        progress=progress,
        description="unet",
    )


class NoiseLoss:
    """|| eps_hat - eps ||^2 (Ho et al. 2020, equation 14)."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See steps.training.batch.LossFunction."""
        example = self.sampling.any_timestep(batch, name="base")
        unet: Any = model
        eps_hat = unet(example.item.z, example.item.t, example.item.embeddings).sample
        return {"loss": functional.mse_loss(eps_hat, example.eps)}


def write_base(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    half: bool = True,
) -> Path:
    """Write a StableDiffusionPipeline folder: safetensors, float16 unless told otherwise, shards of at most 16 MB."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if half:
        pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=SHARD)
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt
    pipeline.to(dtype=torch.float32)
    return folder
