"""Models of a few thousand random weights, and what a stage is given to work on them: shared by all tests."""

import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from steps.diffusion.parameterization import PredictionType
from steps.files.progress import NullProgress
from steps.inputs.context import StageContext
from steps.models.base import BaseModel
from steps.store.local import LocalStore
from tests.steps.diffusion.fakes import SD_SCHEDULE, FakeData

# Levels 1 and 2 differ in width and levels 2 and 3 do not, as in Stable Diffusion 1.5.
TINY_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 24, 24),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
BK_SDM: dict[str, Any] = {"layers_per_block": 1, "mid_block_type": None}
"""BK-SDM's small UNet beside Stable Diffusion's: fewer blocks, and no middle."""

# Of the smallest UNet: what trains in a blink.
TWO_LEVELS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 5,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
LATENT_SHAPE = (4, 8, 8)


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A random-weight UNet of Stable Diffusion's topology in evaluation mode."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**TINY_CONFIG, **changes}).eval()


def two_level_unet(seed: int = 0) -> UNet2DConditionModel:
    """The smallest UNet: latents 4 x 8 x 8, text width 5."""
    return tiny_unet(seed, **TWO_LEVELS)


def tiny_inputs(
    batch: int = 2, size: int = 16, width: int = 12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, 4, size, size), timesteps (B,) and text (B, 7, width)."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, size, size, generator=generator)
    text = torch.randn(batch, 7, width, generator=generator)
    return latents, torch.arange(batch) * 400 + 3, text


def _vae(channels: tuple[int, ...], groups: int, **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=groups,
        **changes,
    ).eval()


def tiny_vae(
    block_out_channels: tuple[int, ...] = (8, 16),
    norm_num_groups: int = 4,
    mid_block_add_attention: bool = True,
) -> AutoencoderKL:
    """Pictures of twice the latents' sides, with two levels."""
    torch.manual_seed(0)
    return _vae(
        block_out_channels,
        norm_num_groups,
        mid_block_add_attention=mid_block_add_attention,
        sample_size=16,
        scaling_factor=0.5,
        force_upcast=False,
    )


def _text_encoder(width: int, **changes: Any) -> CLIPTextModel:
    config = CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, **changes)
    return CLIPTextModel(config).eval()


def _base(
    folder: Path, unet: Any, vae: AutoencoderKL, text: Any = None, tokenizer: Any = None,
    *, schedule: dict[str, Any] | None = None, prediction_type: PredictionType = "epsilon",
) -> BaseModel:  # fmt: skip
    for module in (unet, vae, text):
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False)
    return BaseModel(folder, unet, vae, text, tokenizer, schedule or {}, prediction_type)


def tiny_base(**unet_changes: Any) -> BaseModel:
    """Latents 4 x 16 x 16, 7 tokens, text width 12; no tokenizer files."""
    unet = tiny_unet(**unet_changes)
    vae = _vae((8, 8), 4, sample_size=32)
    text = _text_encoder(12, vocab_size=32, num_hidden_layers=2, max_position_embeddings=7)
    return _base(Path("tiny"), unet, vae, text, SimpleNamespace(model_max_length=7))


def two_level_base(folder: Path, prediction_type: PredictionType = "epsilon") -> BaseModel:
    """The smallest UNet and its decoder, saved in `folder`; for data that come encoded."""
    unet, vae = two_level_unet(), tiny_vae()
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    return _base(folder, unet, vae, schedule=dict(SD_SCHEDULE), prediction_type=prediction_type)


def encoding_base() -> BaseModel:
    """Encoders that can be run, of 32 x 32 pictures and printable characters, without a UNet that could."""
    torch.manual_seed(0)
    vae = _vae((4, 4, 8), 2, latent_channels=4, scaling_factor=0.5)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for character in string.printable:
        vocabulary.setdefault(character, len(vocabulary))
        vocabulary.setdefault(character + "</w>", len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = _text_encoder(8, vocab_size=len(vocabulary), num_hidden_layers=1, **special)
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=8, in_channels=4))
    return _base(Path(), unet, vae, text, tokenizer)


def tiny_data(samples: int = 16) -> FakeData:
    """Data for the smallest UNet."""
    return FakeData(samples=samples, shape=LATENT_SHAPE)


def stage_context(folder: Path, stage: str, seed: int = 1) -> StageContext:
    """A stage's context over a local store in `folder`."""
    work = folder / "work" / stage
    work.mkdir(parents=True, exist_ok=True)
    return StageContext(stage=stage, store=LocalStore(folder / "store"), work=work, seed=seed)


class Shown(NullProgress):
    """Remembers what a bar would show."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done: list[int] = []

    def start(self, description: str, total: int) -> None:
        """As a Progress."""
        self.totals.append(total)

    def update(self, done: int, **metrics: float) -> None:
        """As a Progress."""
        self.done.append(done)


def context(folder: Path, stage: str = "latency_profile") -> StageContext:
    """As `stage_context`, for a stage whose name does not matter."""
    return stage_context(folder, stage, seed=0)
