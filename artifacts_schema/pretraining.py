"""Configuration of the embedded base model and its evaluators, made by `flows/pretrain_flow.py`."""

import tomllib
from typing import Any

from pydantic import ValidationError

from artifacts_schema.base import Frozen
from artifacts_schema.config import InvalidConfig
from artifacts_schema.ranges import Count, CountOrZero, Fraction, NotNegative
from artifacts_schema.stage_configs import RobustTrainingConfig, TrainingConfig, VelocityFinetuningConfig


class ClipModelConfig(Frozen):
    """One OpenCLIP model: a small vision transformer and a causal text transformer."""

    seed: CountOrZero
    embed_dim: Count = 128
    patch_size: Count = 8
    vision_width: Count = 128
    vision_layers: Count = 5
    vision_head_width: Count = 32
    text_width: Count = 128
    text_layers: Count = 4
    text_heads: Count = 4
    training: TrainingConfig


class AutoencoderConfig(Frozen):
    """The AutoencoderKL, f = 2 ** (levels - 1)."""

    seed: CountOrZero
    widths: tuple[Count, ...] = (32, 64, 96)
    norm_groups: Count = 8
    l1_weight: NotNegative = 0.3
    gradient_weight: NotNegative = 0.2  # keeps outlines sharp without an adversary
    kl_weight: NotNegative = 1e-4
    training: TrainingConfig


class UNetConfig(Frozen):
    """The eps-prediction UNet, Stable Diffusion 1's topology."""

    seed: CountOrZero
    widths: tuple[Count, Count, Count, Count] = (32, 64, 96, 96)
    norm_groups: Count = 8
    heads: Count = 4
    caption_dropout: Fraction = 0.1
    training: TrainingConfig


class PretrainingConfig(Frozen):
    """Everything that makes `assets/`."""

    seed: CountOrZero = 0
    image_size: Count = 64
    vocabulary: Count = 2048
    variants: Count = 16  # drawings of a caption, see DataConfig
    work: str = ".snapfusion/pretraining"  # checkpoints, relative to the project root
    output: str = "assets"
    openclip_signal: ClipModelConfig
    openclip_measure: ClipModelConfig
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    velocity_finetuning: VelocityFinetuningConfig
    robust_training: RobustTrainingConfig


def load_pretraining_config(text: str) -> PretrainingConfig:
    """Read TOML text. Raises InvalidConfig naming every bad key."""
    try:
        payload: dict[str, Any] = tomllib.loads(text)
        return PretrainingConfig.model_validate(payload)
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"the configuration is not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [f"'{'.'.join(map(str, item['loc']))}' {item['msg']}" for item in error.errors()]
        raise InvalidConfig("the configuration was refused:\n  " + "\n  ".join(lines)) from error
