"""Which files the user's shards are. Imports no torch, so that a cached run starts quickly."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from steps.files.errors import DataError


def expand_shards(patterns: Sequence[str], project_root: Path) -> list[Path]:
    """Files that paths and brace patterns ("data/{000..099}.tar") name, in order.

    Relative ones are taken from the project root. Raises DataError for an empty list, a missing file and
    anything that is no local path: webdataset's own opener would run "pipe:" as a shell command.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if pattern.startswith("pipe:") or "://" in pattern:
            raise DataError(
                f"data.shards takes local paths and s3:// places, found {pattern!r}; copy the shards to either"
            )
        try:
            paths += [project_root / name for name in braceexpand(pattern)]
        except ValueError as error:
            raise DataError(f"the braces of the data.shards pattern {pattern!r} do not match") from error
    if not paths:
        raise DataError(
            "data.source is 'webdataset' but data.shards names no shard; give tar files or a brace pattern"
        )
    for path in paths:
        if not path.is_file():
            raise DataError(f"shard {path} does not exist; correct data.shards or copy the shard there")
    repeated = sorted({str(path) for path, times in Counter(paths).items() if times > 1})
    if repeated:
        raise DataError(f"data.shards names {repeated[0]} more than once; name every shard once")
    return paths
