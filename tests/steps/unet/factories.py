"""The smallest UNets with Stable Diffusion's topology."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

# Levels 1 and 2 differ in width and levels 2 and 3 do not, as in Stable Diffusion 1.5.
TINY_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 24, 24),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A random-weight UNet in evaluation mode."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**TINY_CONFIG, **changes}).eval()


def tiny_inputs(
    batch: int = 2, size: int = 16, width: int = 12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, 4, size, size), timesteps (B,) and text (B, 7, width)."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, size, size, generator=generator)
    text = torch.randn(batch, 7, width, generator=generator)
    return latents, torch.arange(batch) * 400 + 3, text
