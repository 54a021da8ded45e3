"""Models in and out of the store, and the base model's folder.

Weights are safetensors only. Nothing here can load a pickle: `use_safetensors=True` everywhere, and a base folder with
pickled weights is refused before anything is read.
"""

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from artifacts_schema.base import canonical_json
from artifacts_schema.references import WeightsRef
from steps.base_folder import check_base_folder
from steps.disk import temporary_folder
from steps.errors import BaseModelError, StoreError
from steps.store.base import Store
from steps.weights_fit import misfit

PredictionType = Literal["epsilon", "v_prediction"]
WeightsOf = Literal["unet", "vae", "text_encoder"]
_WEIGHTS = "diffusion_pytorch_model.safetensors"


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


def load_whole(kind: Any, folder: Path) -> Any:
    """A diffusers or transformers model in float32 from a folder that holds every weight its configuration asks for.

    Raises BaseModelError with the folder, and the first tensors that are missing, too much or of another shape.
    """
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused here, with their names
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelError(f"{folder} cannot be loaded: {error}") from error
    fault = misfit(
        missing=info["missing_keys"],
        mismatched=[name for name, *_ in info["mismatched_keys"]],
        unexpected=info["unexpected_keys"],
    )
    if fault:
        files = ", ".join(sorted(file.name for file in folder.glob("*.safetensors")))
        raise BaseModelError(f"{folder}: {files} and config.json do not belong together: {fault}")
    return model


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


def save_model(store: Store, model: nn.Module, *, schema: str, parents: Sequence[str] = ()) -> WeightsRef:
    """Store a diffusers-style model (`save_pretrained`, `from_config`) as one safetensors object and its config."""
    saver = cast(Any, model)
    # Beside the store, whose room is known: the system's folder for temporary files may be small.
    with tempfile.TemporaryDirectory(dir=temporary_folder(store.work_folder("saving"))) as folder:
        saver.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
        weights = store.put_file(Path(folder) / _WEIGHTS)
        config = json.loads((Path(folder) / "config.json").read_text())
    # The path a model was loaded from and the library's version say nothing about the model.
    meaning = {k: v for k, v in config.items() if k not in ("_name_or_path", "_diffusers_version")}
    config_ref = store.put_bytes(canonical_json(meaning).encode())
    return WeightsRef(
        uri=weights.uri,
        sha256=weights.sha256,
        bytes=weights.bytes,
        schema_id=schema,
        config=config_ref,
        parents=tuple(parents),
    )


def load_model(store: Store, ref: WeightsRef) -> Any:
    """Load a stored model in float32, evaluation mode.

    Raises StoreError for a class this version does not know, and for weights that are not those of the configuration.
    """
    classes = _model_classes()
    if ref.schema_id not in classes:
        raise StoreError(f"weights {ref.sha256} are of class {ref.schema_id}; known are {', '.join(classes)}")
    model = classes[ref.schema_id].from_config(json.loads(store.path_of(ref.config).read_text()))
    try:
        model.load_state_dict(load_file(store.path_of(ref)))
    except RuntimeError as error:
        raise StoreError(
            f"weights {ref.sha256} do not fit {ref.schema_id} as this version builds it: {' '.join(str(error).split())}"
        ) from error
    return model.float().eval()


def _model_classes() -> dict[str, Any]:
    from steps.diffusion.small_decoder import SmallDecoder
    from steps.unet.evolved import EvolvedUNet

    return {
        "diffusers.UNet2DConditionModel": UNet2DConditionModel,
        "diffusers.AutoencoderKL": AutoencoderKL,
        "snapfusion.EvolvedUNet": EvolvedUNet,
        "snapfusion.SmallDecoder": SmallDecoder,
    }


@torch.no_grad()
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


def encode_captions(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, captions: Sequence[str], *, batch_size: int = 64
) -> torch.Tensor:
    """Hidden states (n, max_length, width) of captions, exactly as StableDiffusionPipeline makes them."""
    parts = []
    for start in range(0, len(captions), batch_size):
        ids = token_ids(tokenizer, captions[start : start + batch_size])
        parts.append(text_encoder(ids.to(text_encoder.device))[0].float().cpu())
    return torch.cat(parts)
