"""Cheap checks and the identity of a model folder. Imports no torch, so that a cached run starts quickly."""

from pathlib import Path

from artifacts_schema.base import content_hash
from steps.files.disk import file_sha256
from steps.files.errors import BaseModelError, StoreError
from steps.files.folder_files import folder_files

COMPONENTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_MEANINGFUL = (".safetensors", ".json", ".txt")


def check_base_folder(path: Path) -> None:
    """Refuse a base that lacks a component, carries pickled weights or has links to nothing.

    Raises BaseModelError with the file.
    """
    if not (path / "model_index.json").is_file():
        raise BaseModelError(
            f"expected a diffusers StableDiffusionPipeline folder with model_index.json, found none in {path}; "
            "save the pipeline with save_pretrained(..., safe_serialization=True)"
        )
    try:
        files = folder_files(path)
    except StoreError as error:
        raise BaseModelError(f"the base {path} is not usable: {error}") from error
    for name in COMPONENTS:
        if not (path / name).is_dir():
            raise BaseModelError(
                f"the base {path} lacks the component '{name}' ({path / name} is not a folder)"
            )
    for file in files:
        if file.suffix in _PICKLES:
            raise BaseModelError(
                f"{file} holds pickled weights, which are never loaded; convert the base to safetensors"
            )
    for name in ("text_encoder", "unet", "vae"):
        if not list((path / name).glob("*.safetensors")):
            raise BaseModelError(f"the base component {path / name} has no .safetensors file")


def folder_identity(path: Path) -> str:
    """SHA-256 over the names and contents of a model folder's weights, configurations and vocabularies.

    Raises StoreError, see `folder_files`.
    """
    files = {}
    for file in folder_files(path):
        if file.suffix in _MEANINGFUL:
            files[file.relative_to(path).as_posix()] = file_sha256(file)
    return content_hash(files)
