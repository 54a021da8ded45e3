"""The folder of a student: a diffusers pipeline that draws where only diffusers, transformers and torch are.

Weights, text encoder and tokenizer are the run's own stored objects; new are a few small files. The classes that
diffusers does not have travel as source beside their weights (`steps.export.standalone`), which
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` imports (docs/adr/0033-student-folder.md).
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from artifacts_schema.references import FolderRef, ObjectRef, WeightsRef
from steps.export.standalone import STANDALONE
from steps.files.errors import ExportError, SnapFusionError
from steps.store.base import Store, get_bytes

INDEX = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_UNCHANGED = ("text_encoder", "tokenizer")


@cache
def modules() -> Mapping[str, tuple[str, str]]:
    """Of each class that diffusers does not have, the name of its module and the module's text."""
    return {item.name: (item.module, item.source()) for item in STANDALONE}


def diffusers_folder(
    store: Store,
    base: FolderRef,
    *,
    unet: WeightsRef,
    decoder: WeightsRef,
    prediction_type: str = "v_prediction",
) -> dict[str, ObjectRef]:
    """Every file of a student's folder but its card, by path; what is new is stored.

    `base` is the stored base, whose text encoder, tokenizer and noise schedule the student keeps. Raises ExportError
    for a base that lacks one of them, and for weights of a class that no folder can carry.
    """
    import diffusers  # here: fetching and publishing a student need no torch

    from steps.diffusion.scheduler import GridDDIMScheduler

    schedule = _json(store, base, "scheduler/scheduler_config.json")
    scheduler = GridDDIMScheduler.from_config({**schedule, "prediction_type": prediction_type})
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        **{name: _json(store, base, INDEX)[name] for name in _UNCHANGED},
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    files = {name: ref for name, ref in base.files.items() if name.split("/")[0] in _UNCHANGED}
    files["text_encoder/config.json"] = _put_json(
        store, _in_float32(_json(store, base, "text_encoder/config.json"))
    )
    for component, ref in {"unet": unet, "vae": decoder}.items():
        files[f"{component}/config.json"] = ref.config
        files[f"{component}/{_WEIGHTS}"] = ObjectRef(uri=ref.uri, sha256=ref.sha256, bytes=ref.bytes)
        index[component] = _place(store, component, ref.schema_id, files)
    files["scheduler/scheduler_config.json"] = _put_json(store, dict(scheduler.config))
    index["scheduler"] = _place(store, "scheduler", "snapfusion.GridDDIMScheduler", files)
    files[INDEX] = _put_json(store, index)
    return files


def check_code(folder: Path) -> None:
    """Refuse a student's folder with source that this version would not have written: to load it is to run that.

    Raises SnapFusionError with the file, and for a folder that is no student.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SnapFusionError(
            f"expected the folder of a student with {INDEX}, found none that can be read in {folder}; "
            "name the folder `student` of a run's outputs, or one that was fetched"
        ) from error
    if not isinstance(index, dict) or index.get("_class_name") != "StableDiffusionPipeline":
        raise SnapFusionError(f"expected a StableDiffusionPipeline in {folder / INDEX}, found another model")
    own = {f"{module}.py": text for module, text in modules().values()}
    for file in sorted(folder.rglob("*.py")):
        if own.get(file.name) != file.read_text(encoding="utf-8", errors="replace"):
            raise SnapFusionError(
                f"{file} is not the code that this version of the pipeline writes, and loading would run it; read it, "
                "then pass trust_remote_code=True (--trust-remote-code) if it comes from somebody you trust"
            )


def _place(store: Store, component: str, schema: str, files: dict[str, ObjectRef]) -> list[str]:
    """Library and class of a component, as model_index.json names them; a class of ours puts its source into `files`."""
    library, _, name = schema.partition(".")
    if library == "diffusers":
        return [library, name]
    if library != "snapfusion" or name not in modules():
        raise ExportError(f"expected a class of diffusers or one of {', '.join(modules())}, found {schema}")
    module, text = modules()[name]
    files[f"{component}/{module}.py"] = store.put_bytes(text.encode())
    return [module, name]


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """A text encoder's configuration that loads its weights in float32, as the UNet's and the decoder's are.

    transformers takes the type that is stated there; the included base states float16, and a pipeline of mixed types
    cannot draw.
    """
    return {**{key: value for key, value in config.items() if key != "torch_dtype"}, "dtype": "float32"}


def _json(store: Store, base: FolderRef, name: str) -> dict[str, Any]:
    if name not in base.files:
        raise ExportError(f"expected {name} in the stored base, found {', '.join(sorted(base.files))}")
    found: dict[str, Any] = json.loads(get_bytes(store, base.files[name]))
    return found


def _put_json(store: Store, value: Mapping[str, Any]) -> ObjectRef:
    return store.put_bytes((json.dumps(value, indent=2) + "\n").encode())
