"""The folders a configuration names: that they are there, and their identities.

Imports no torch, so that a run whose stages are all cached starts quickly.
"""

from pathlib import Path

from artifacts_schema.config import SnapFusionConfig
from steps.base_folder import check_base_folder, folder_identity
from steps.errors import ConfigError

MICRO = "micro"
"""`base.path` that stands for a random-weight model of a few thousand parameters."""


def input_identities(config: SnapFusionConfig, project_root: Path) -> dict[str, str]:
    """Identities of every folder the configuration names, for the cache key of `start`. Imports no weights.

    Raises BaseModelError or ConfigError for folders that are missing or unusable.
    """
    base = MICRO if config.base.path == MICRO else folder_identity(base_folder(config, project_root))
    identities = {"base": base}
    for name, path in other_folders(config, project_root).items():
        identities[name] = folder_identity(path) if path is not None else ""
    if config.data.source == "webdataset":
        from steps.data.webdataset import expand_shards

        for shard in expand_shards(config.data.shards, project_root):
            stat = shard.stat()
            identities[f"shard {len(identities)}"] = f"{shard.name}:{stat.st_size}:{stat.st_mtime_ns}"
    return identities


def base_folder(config: SnapFusionConfig, project_root: Path) -> Path:
    """The base's folder, checked. Raises BaseModelError."""
    folder = project_root / config.base.path
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
            raise ConfigError(f"evaluation.{name} names {path}, which is not a folder with an OpenCLIP model")
        result[name] = path
    return result
