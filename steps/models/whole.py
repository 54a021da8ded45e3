"""Models from a folder that holds every weight their configuration asks for."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from steps.files.errors import BaseModelError
from steps.models.weights_fit import misfit


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
