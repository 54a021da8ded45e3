"""A whole miniature base with random weights, without tokenizer files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.store.local import LocalStore
from tests.steps.unet.factories import tiny_unet

BK_SDM: dict[str, Any] = {"layers_per_block": 1, "mid_block_type": None}
"""BK-SDM's small UNet beside Stable Diffusion's: fewer blocks, and no middle."""


def tiny_base(**unet_changes: Any) -> BaseModel:
    """Latents 4 x 16 x 16, 7 tokens, text width 12."""
    unet = tiny_unet(**unet_changes)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=32,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=32,
            hidden_size=12,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=7,
        )
    )
    tokenizer: Any = SimpleNamespace(model_max_length=7)
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return BaseModel(Path("tiny"), unet, vae, text, tokenizer, {}, "epsilon")


def context(folder: Path, stage: str = "latency_profile") -> StageContext:
    """A stage context over a local store in `folder`."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return StageContext(
        stage=stage, store=LocalStore(folder / "store"), work=work, seed=0, device=torch.device("cpu")
    )
