"""Which shards the user names. Imports no torch, so that a cached run starts quickly."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from braceexpand import braceexpand

from steps.data.places import is_remote, shown
from steps.files.errors import DataError


def expand_shards(patterns: Sequence[str], project_root: Path) -> list[str]:
    """Places that paths, addresses and brace patterns ("data/{000..099}.tar") name, in order; paths are absolute.

    Relative ones are taken from the project root. Raises DataError for an empty list, one named twice, and anything
    that is neither a local path nor s3:// nor http(s)://: webdataset's own opener would run "pipe:" as a shell command.
    """
    places: list[str] = []
    for pattern in patterns:
        _check_kind(pattern)
        try:
            names = list(braceexpand(pattern))
        except ValueError as error:
            raise DataError(f"the braces of the data.shards pattern {pattern!r} do not match") from error
        places += [name if is_remote(name) else str(project_root / name) for name in names]
    if not places:
        raise DataError(
            "data.source is 'webdataset' but data.shards names no shard; give tar files or a brace pattern"
        )
    repeated = sorted(place for place, times in Counter(places).items() if times > 1)
    if repeated:
        raise DataError(f"data.shards names {shown(repeated[0])} more than once; name every shard once")
    return places


def _check_kind(pattern: str) -> None:
    if pattern.startswith("pipe:") or ("://" in pattern and not is_remote(pattern)):
        raise DataError(
            f"data.shards takes local paths and places that begin with s3:// or http(s)://, found {pattern!r}; "
            "copy the shards to one of them"
        )
    # The text is not repeated: there are keys in it.
    if is_remote(pattern) and "@" in urlsplit(pattern.partition("{")[0]).netloc:
        raise DataError(
            "a place of data.shards must hold no user and password; give S3's keys by the environment"
        )
