"""Models in and out of the store: safetensors and a configuration, never a pickle."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from artifacts_schema.base import canonical_json
from artifacts_schema.references import WeightsRef
from steps.files.disk import temporary_folder
from steps.files.errors import StoreError
from steps.store.base import Store
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_CLASSES: dict[str, Any] = {
    "diffusers.UNet2DConditionModel": UNet2DConditionModel,
    "diffusers.AutoencoderKL": AutoencoderKL,
    "snapfusion.EvolvedUNet": EvolvedUNet,
    "snapfusion.SmallDecoder": SmallDecoder,
}


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
    if ref.schema_id not in _CLASSES:
        raise StoreError(
            f"weights {ref.sha256} are of class {ref.schema_id}; known are {', '.join(_CLASSES)}"
        )
    model = _CLASSES[ref.schema_id].from_config(json.loads(store.path_of(ref.config).read_text()))
    try:
        model.load_state_dict(load_file(store.path_of(ref)))
    except RuntimeError as error:
        raise StoreError(
            f"weights {ref.sha256} do not fit {ref.schema_id} as this version builds it: {' '.join(str(error).split())}"
        ) from error
    return model.float().eval()
