"""Inputs that the configuration names by `s3://`: copied to this machine, where they are hashed like any folder.

A copy lies under a name made of what the server lists (keys, sizes, ETags): what changes there is fetched anew, what does
not is fetched once. What counts for cache keys are the bytes that arrived.
"""

import re
from dataclasses import astuple
from pathlib import Path

from artifacts_schema.base import content_hash
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.run_configs import StoreConfig
from steps.files.disk import check_disk
from steps.files.errors import ConfigError
from steps.store.s3_client import SCHEME
from steps.store.s3_source import s3_source

_PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]/.+")
_FOLDERS = (
    "base.path", "base.velocity_warm_start", "base.robust_warm_start", "evaluation.signal_clip",
    "evaluation.measure_clip",
)  # fmt: skip
_FILES = ("evaluation.inception",)
_TABLE = "latency_profile.table"
_SPARE_BYTES = 1 << 30


def with_fetched_inputs(config: SnapFusionConfig, folder: Path) -> SnapFusionConfig:
    """The configuration with paths below `folder` in place of every `s3://` input but the latency table and shards, which
    are read one at a time (`steps.data.places`).

    Raises ConfigError for a place that is none or where nothing lies, DiskFullError, StoreError.
    """
    values = config.model_dump()
    for name in (*_FOLDERS, *_FILES):
        section, key = name.split(".")
        place = values[section][key]
        unused = name.endswith("warm_start") and not config.base.warm_start
        if place is not None and place.startswith(SCHEME) and not unused:
            values[section][key] = str(fetch(place, config.store, folder, name, whole=name in _FOLDERS))
    return SnapFusionConfig.model_validate(values)


def with_fetched_table(config: SnapFusionConfig, folder: Path) -> SnapFusionConfig:
    """The same for `latency_profile.table`, with the device's manifest.json that may lie beside it."""
    place = config.latency_profile.table
    if place is None or not place.startswith(SCHEME):
        return config
    path = str(fetch(place, config.store, folder, _TABLE, beside="manifest.json"))
    profile = config.latency_profile.model_copy(update={"table": path})
    return config.model_copy(update={"latency_profile": profile})


def fetch(
    place: str, config: StoreConfig, folder: Path, name: str, *, whole: bool = False, beside: str = ""
) -> Path:
    """A local copy of a file, or with `whole` of a folder, on S3. `name` is the key of the configuration, for errors.

    `beside` is a file that comes along if it lies in the same folder.
    """
    if not _PLACE.fullmatch(place):
        raise ConfigError(f"{name} must be s3://bucket/key or a path, without keys or host in it")
    bucket, _, key = place.removeprefix(SCHEME).rstrip("/").partition("/")
    top, _, file = (key, "", "") if whole else key.rpartition("/")
    source = s3_source(config, bucket)
    found = source.listed(f"{top}/" if top else "", f"{top}/" if whole or beside else key)
    if not whole:
        found = [item for item in found if item.name in (file, beside)]
    if not found or (file and file not in {item.name for item in found}):
        raise ConfigError(f"{name} names {place}, where nothing lies; put it there or correct {name}")
    target = folder / content_hash([bucket, top, sorted(astuple(item) for item in found)])[:32]
    target.mkdir(parents=True, exist_ok=True)
    missing = [item for item in found if not (target / item.name).is_file()]
    check_disk(folder, sum(item.bytes for item in missing) + _SPARE_BYTES, f"{name} from {place}")
    for item in missing:
        source.copy(item, target / item.name)
    return target / file
