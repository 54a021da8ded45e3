"""Inputs that the configuration names by `s3://`: copied to this machine, where they are hashed like any folder.

A copy lies under a name made of what the server lists (keys, sizes, ETags): what changes there is fetched anew, what does
not is fetched once. What counts for cache keys are the bytes that arrived.
"""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from artifacts_schema.base import content_hash
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.run_configs import StoreConfig
from steps.files.disk import check_disk
from steps.files.errors import ConfigError, DataError
from steps.store.base import PARTIAL
from steps.store.s3_client import Location, attempt, make_client

SCHEME = "s3://"
_PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]/.+")
_FOLDERS = (
    "base.path", "base.velocity_warm_start", "base.robust_warm_start", "evaluation.signal_clip",
    "evaluation.measure_clip",
)  # fmt: skip
_FILES = ("evaluation.inception",)
_TABLE = "latency_profile.table"
_SPARE_BYTES = 1 << 30


def with_fetched_inputs(config: SnapFusionConfig, folder: Path) -> SnapFusionConfig:
    """The configuration with paths below `folder` in place of every `s3://` input but the latency table.

    Raises ConfigError for a place that is none or where nothing lies, DataError for shards, DiskFullError, StoreError.
    """
    values = config.model_dump()
    for name in (*_FOLDERS, *_FILES):
        section, key = name.split(".")
        place = values[section][key]
        unused = name.endswith("warm_start") and not config.base.warm_start
        if place is not None and place.startswith(SCHEME) and not unused:
            values[section][key] = str(fetch(place, config.store, folder, name, whole=name in _FOLDERS))
    for name in ("shards", "held_out_from"):
        patterns: tuple[str, ...] = getattr(config.data, name)
        values["data"][name] = [path for each in patterns for path in _shards(each, config, folder)]
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
    source = _source(config, bucket)
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


@dataclass(frozen=True)
class _Item:
    """A file on S3: name relative to the folder that was asked for, key, bytes, ETag."""

    name: str
    key: str
    bytes: int
    etag: str


@dataclass(frozen=True)
class _Source:
    """A bucket with other things than a store in it."""

    client: Any
    location: Location

    def listed(self, top: str, prefix: str) -> list[_Item]:
        """Files whose keys start with `prefix`, named relative to `top`."""
        pages = self.client.get_paginator("list_objects_v2")
        arguments = {"Bucket": self.location.bucket, "Prefix": prefix}
        answers = attempt(f"listing {prefix}", self.location, lambda: list(pages.paginate(**arguments)))
        found = []
        for item in (item for answer in answers for item in answer.get("Contents", ())):
            name = item["Key"].removeprefix(top)
            if ".." in name.split("/") or name.startswith("/"):
                raise ConfigError(f"the key {item['Key']!r} on S3 leads out of its folder")
            if name and not name.endswith("/"):
                found.append(_Item(name, item["Key"], item["Size"], item["ETag"]))
        return found

    def copy(self, item: _Item, path: Path) -> None:
        """A file appears under its name when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as folder:
            partial = Path(folder) / "file"
            attempt(
                f"fetching {item.key}",
                self.location,
                lambda: self.client.download_file(self.location.bucket, item.key, str(partial)),
            )
            if partial.stat().st_size != item.bytes:
                raise DataError(
                    f"{item.key} on S3 changed while it was read; start again when it is complete"
                )
            partial.replace(path)


@cache
def _source(config: StoreConfig, bucket: str) -> _Source:
    """One client for all shards."""
    location = Location(bucket, "")
    return _Source(make_client(config, location), location)


def _shards(pattern: str, config: SnapFusionConfig, folder: Path) -> Iterator[str]:
    """The pattern itself, or paths of the copies of what it names on S3."""
    if not pattern.startswith(SCHEME):
        yield pattern
        return
    try:
        places = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"the braces of the data.shards pattern {pattern!r} do not match") from error
    for place in places:
        yield str(fetch(place, config.store, folder, "data.shards"))
