"""The base model's folder: loaded, checked, and its captions encoded.

Weights are safetensors only. Nothing here can load a pickle: `use_safetensors=True` everywhere, and a base folder with
pickled weights is refused before anything is read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from steps.diffusion.parameterization import PredictionType
from steps.files.errors import BaseModelError
from steps.models.base_folder import check_base_folder
from steps.models.whole import load_whole

WeightsOf = Literal["unet", "vae", "text_encoder"]


@dataclass(frozen=True)
class BaseModel:
    """A loaded Stable-Diffusion-style model. `latent_shape` is (channels, height, width); `max_length` in tokens."""

    path: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    prediction_type: PredictionType

    @property
    def scaling_factor(self) -> float:
        """Latents are the encoder's output times this factor (unit variance)."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = int(self.unet.config.sample_size)
        return int(self.unet.config.in_channels), size, size

    @property
    def image_size(self) -> int:
        """Side of a decoded picture in pixels."""
        factor: int = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * factor


def load_base(path: Path, *, only: Collection[WeightsOf] | None = None) -> BaseModel:
    """Load and check every component in float32, evaluation mode. Raises BaseModelError with the file at fault.

    `only` names the components whose weights are read; the others lie on the meta device: their configuration is
    there, their weights take no memory.
    """
    check_base_folder(path)
    wanted: Collection[str] = ("unet", "vae", "text_encoder") if only is None else only
    try:
        unet: UNet2DConditionModel = _component(UNet2DConditionModel, path / "unet", wanted)
        vae: AutoencoderKL = _component(AutoencoderKL, path / "vae", wanted)
        text: CLIPTextModel = _component(CLIPTextModel, path / "text_encoder", wanted)
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        scheduler = dict(DDIMScheduler.load_config(path / "scheduler"))
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"the base {path} cannot be loaded: {error}") from error
    _check_text(path, text, tokenizer, unet)
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"{path}/scheduler/scheduler_config.json: prediction_type must be epsilon or v_prediction, found {prediction!r}"
        )
    for module in (unet, vae, text):
        module.eval().requires_grad_(False)
    return BaseModel(path, unet, vae, text, tokenizer, scheduler, cast(PredictionType, prediction))


def _component(kind: Any, folder: Path, wanted: Collection[str]) -> Any:
    """A component with its weights if its folder's name is wanted."""
    if folder.name in wanted:
        return load_whole(kind, folder)
    with torch.device("meta"):
        if issubclass(kind, CLIPTextModel):
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        return kind.from_config(kind.load_config(folder, local_files_only=True))


def _check_text(
    path: Path, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """A tokenizer that does not fit its text encoder trains and draws nonsense without any error."""
    config = text.config
    if len(tokenizer) > config.vocab_size:
        raise BaseModelError(
            f"{path}/tokenizer has {len(tokenizer)} entries but {path}/text_encoder/config.json allows {config.vocab_size}"
        )
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise BaseModelError(
            f"{path}/tokenizer makes up to {tokenizer.model_max_length} tokens but {path}/text_encoder/config.json "
            f"has {config.max_position_embeddings} positions"
        )
    # 2 is what the oldest SD configurations carry; transformers then looks for the highest id instead.
    if config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise BaseModelError(
            f"{path}/text_encoder/config.json has eos_token_id {config.eos_token_id}, the tokenizer {tokenizer.eos_token_id}"
        )
    if config.hidden_size != unet.config.cross_attention_dim:
        raise BaseModelError(
            f"{path}/text_encoder is {config.hidden_size} wide but {path}/unet expects {unet.config.cross_attention_dim}"
        )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """int64 (n, max_length), padded and cut, exactly as StableDiffusionPipeline makes them."""
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = tokens.input_ids
    return ids


@torch.no_grad()
def encode_captions(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, captions: Sequence[str], *, batch_size: int = 64
) -> torch.Tensor:
    """Hidden states (n, max_length, width) of captions, exactly as StableDiffusionPipeline makes them."""
    parts = []
    for start in range(0, len(captions), batch_size):
        ids = token_ids(tokenizer, captions[start : start + batch_size])
        parts.append(text_encoder(ids.to(text_encoder.device))[0].float().cpu())
    return torch.cat(parts)
