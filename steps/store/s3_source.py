"""A bucket with other things than a store in it: inputs of a run, and shards of pictures."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import botocore.exceptions

from artifacts_schema.run_configs import StoreConfig
from steps.files.disk import no_space_is_said
from steps.files.errors import ConfigError, DataError
from steps.store.base import PARTIAL
from steps.store.s3_client import Location, attempt, make_client


@dataclass(frozen=True)
class S3File:
    """A file on S3: name relative to the folder that was asked for, key, bytes, ETag."""

    name: str
    key: str
    bytes: int
    etag: str


@dataclass(frozen=True)
class S3Source:
    """A bucket with other things than a store in it."""

    client: Any
    location: Location

    def listed(self, top: str, prefix: str) -> list[S3File]:
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
                found.append(S3File(name, item["Key"], item["Size"], item["ETag"]))
        return found

    def copy(self, item: S3File, path: Path) -> None:
        """A file appears under its name when it is complete. Raises DataError for one that is not as it was listed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as folder:
            partial = Path(folder) / "file"
            where = {"Bucket": self.location.bucket, "Key": item.key}

            def fetch() -> Any:
                self.client.download_file(*where.values(), str(partial))
                return self.client.head_object(**where)

            try:
                with no_space_is_said(item.name, path.parent):
                    now = attempt(f"fetching {item.key}", self.location, fetch)
            except botocore.exceptions.ClientError as error:
                raise DataError(f"{self._place(item)} is gone since it was listed; start again") from error
            if (partial.stat().st_size, now["ETag"]) != (item.bytes, item.etag):
                raise DataError(
                    f"{self._place(item)} changed while it was read; start again when it is complete"
                )
            partial.replace(path)

    def _place(self, item: S3File) -> str:
        return f"s3://{self.location.bucket}/{item.key}"


@cache
def s3_source(config: StoreConfig, bucket: str) -> S3Source:
    """One client for all shards."""
    location = Location(bucket, "")
    return S3Source(make_client(config, location), location)
