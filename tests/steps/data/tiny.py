"""The smallest base whose encoders can be run: random weights, 8 x 8 latents of 32 x 32 pictures."""

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from steps.data.source import Picture
from steps.models.base import BaseModel

IMAGE_SIZE = 32


def tiny_base() -> BaseModel:
    """Base model without a UNet that could run."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
    )
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for character in string.printable:
        vocabulary.setdefault(character, len(vocabulary))
        vocabulary.setdefault(character + "</w>", len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = cast(Any, SimpleNamespace(config=SimpleNamespace(sample_size=8, in_channels=4)))
    for module in (vae, text_encoder):
        module.eval().requires_grad_(False)
    return BaseModel(Path(), unet, vae, text_encoder, tokenizer, {}, "epsilon")


class ListSource:
    """A source of given pictures."""

    name = "list"
    attribution = "nobody"

    def __init__(self, pictures: list[Picture], variants: int = 1) -> None:
        self._pictures = pictures
        self.variants = variants
        self.total = len(pictures)
        self.skipped: dict[str, int] = {}

    def pictures(self) -> Any:
        """See Source."""
        return iter(self._pictures)


def noise_image(seed: int) -> Tensor:
    """Random uint8 picture (3, IMAGE_SIZE, IMAGE_SIZE)."""
    shape = (3, IMAGE_SIZE, IMAGE_SIZE)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
