"""Cheap checks and the identity of a model folder. Imports no torch, so that a cached run starts quickly."""

from pathlib import Path

from artifacts_schema.base import content_hash
from artifacts_schema.references import FolderRef
from steps.files.disk import file_sha256
from steps.files.errors import BaseModelError, StoreError
from steps.files.folder_files import folder_files
from steps.store.base import Store

COMPONENTS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_MEANINGFUL = (".safetensors", ".json", ".txt", ".model")  # weights, configurations, vocabularies


def check_base_folder(path: Path) -> None:
    """Refuse a base that lacks a component, has weights as pickles only, or links that lead out of it or to nothing.

    Pickles beside the safetensors of the same component, or at the top of a whole base, as hubs have them, are passed
    over: nothing reads or stores them. Raises BaseModelError with the file.
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
        if file.suffix in _PICKLES and file.parent != path and not list(file.parent.glob("*.safetensors")):
            raise BaseModelError(
                f"{file} holds pickled weights, which are never loaded, and no .safetensors lies beside it; download "
                "that, or convert the base to safetensors"
            )
    for name in ("text_encoder", "unet", "vae"):
        if not list((path / name).glob("*.safetensors")):
            raise BaseModelError(f"the base component {path / name} has no .safetensors file")


def model_files(folder: Path) -> dict[str, Path]:
    """What counts of a model folder, by relative path: its weights, configurations and vocabularies.

    Pickles, pictures and whatever is hidden (a downloader's own notes) are neither hashed nor stored. Raises StoreError,
    see `folder_files`.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder_files(folder)}
    return {
        name: file
        for name, file in files.items()
        if file.suffix in _MEANINGFUL and not any(part.startswith(".") for part in name.split("/"))
    }


def folder_identity(path: Path) -> str:
    """SHA-256 over the names and contents of what counts of a model folder. Raises StoreError, see `folder_files`."""
    return content_hash({name: file_sha256(file) for name, file in model_files(path).items()})


def put_model_folder(store: Store, folder: Path) -> FolderRef:
    """Store what counts of a model folder. Raises StoreError, see `folder_files`."""
    return FolderRef(files={name: store.put_file(file) for name, file in model_files(folder).items()})
