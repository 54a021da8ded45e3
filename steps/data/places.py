"""Where shards lie: on a disk, on S3 or on a web server; who they are, and a copy of one to read.

A shard on a disk is known by its bytes. One elsewhere is known by what the server says of it before anybody reads it: its
size and its ETag (of a web server without ETags the time of its last change). A copy counts only if it is still that.
Imports no torch.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3

from artifacts_schema.base import content_hash
from artifacts_schema.data import RawFile
from artifacts_schema.run_configs import StoreConfig
from steps.files.disk import file_sha256, no_space_is_said
from steps.files.errors import DataError
from steps.files.hashes import FileHashes

logger = logging.getLogger(__name__)
S3, WEB = "s3://", ("http://", "https://")
_TOGETHER = 16  # questions to web servers at once
_TRIES = 5
_SHOWN = 5  # names in a message


def is_remote(place: str) -> bool:
    """True for a place that is none on a disk."""
    return place.startswith((S3, *WEB))


def name_of(place: str) -> str:
    """The name of the file there, without folders."""
    path = unquote(urlsplit(place).path) if place.startswith(WEB) else place
    return path.rpartition("/")[2]


def shown(place: str) -> str:
    """A place for people: without the query of an address, in which a signature may stand."""
    return place.partition("?")[0] if is_remote(place) else place


def identified(places: Sequence[str], hashes: FileHashes, store: StoreConfig) -> tuple[RawFile, ...]:
    """Who the shards at these places are, in order; `store` says which S3 server is asked and how.

    Raises DataError that names those which are not there, or of which a server says too little; StoreError for an S3
    server that refuses.
    """
    found: dict[str, RawFile | None] = _listed([place for place in places if place.startswith(S3)], store)
    web = [place for place in places if place.startswith(WEB)]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        found |= dict(zip(web, pool.map(_asked, web), strict=True))
    missing = [place for place in places if not is_remote(place) and not Path(place).is_file()]
    missing += [place for place, answer in found.items() if answer is None]
    if missing:
        names = ", ".join(map(shown, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        which = f"shard {names} does" if len(missing) == 1 else f"{len(missing)} of {len(places)} shards do"
        named = "" if len(missing) == 1 else f": {names}"
        raise DataError(f"{which} not exist{named}; correct data.shards or put what is missing there")
    here = [place for place in places if not is_remote(place)]
    for place, sha256 in zip(here, hashes.of([Path(place) for place in here]), strict=True):
        found[place] = RawFile(name=name_of(place), sha256=sha256, bytes=Path(place).stat().st_size)
    return tuple(answer for place in places if (answer := found[place]) is not None)


def _listed(places: Sequence[str], store: StoreConfig) -> dict[str, RawFile | None]:
    """Of places on S3, by a listing of each folder."""
    if not places:
        return {}
    from steps.store.s3_source import s3_source  # boto3 takes a while to import

    folders: dict[str, list[str]] = {}
    for place in places:
        folders.setdefault(place.rpartition("/")[0], []).append(place)
    found: dict[str, RawFile | None] = {}
    for folder, inside in folders.items():
        bucket, _, top = folder.removeprefix(S3).partition("/")
        prefix = f"{top}/" if top else ""
        files = {item.name: item for item in s3_source(store, bucket).listed(prefix, prefix)}
        for place in inside:
            item = files.get(name_of(place))
            found[place] = _file(place, item.bytes, item.etag) if item else None
    return found


def _file(place: str, size: int, version: str) -> RawFile:
    """S3's ETags follow from the bytes, those of web servers often from a time: there the address counts, too."""
    where = name_of(place) if place.startswith(S3) else shown(place)
    return RawFile(name=name_of(place), sha256=content_hash([where, size, version]), bytes=size)


@cache
def _pool() -> urllib3.PoolManager:
    retries = urllib3.Retry(
        _TRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
    )
    return urllib3.PoolManager(
        maxsize=_TOGETHER, retries=retries, timeout=urllib3.Timeout(connect=10, read=60)
    )


def _asked(place: str) -> RawFile | None:
    """What a web server says of a file, or None when there is none. Raises DataError."""
    return _described(place, _answer("HEAD", place))


def _answer(method: str, place: str, *, stream: bool = False) -> Any:
    try:
        # identity: the length is that of the file
        return _pool().request(
            method, place, preload_content=not stream, headers={"Accept-Encoding": "identity"}
        )
    except urllib3.exceptions.HTTPError as error:
        raise DataError(
            f"no answer from {shown(place)} ({type(error).__name__}); check the address and try again"
        ) from error


def _described(place: str, answer: Any) -> RawFile | None:
    if answer.status in (404, 410):
        return None
    if answer.status != 200:
        raise DataError(
            f"the server of {shown(place)} answers {answer.status}; check the address and the right to read it"
        )
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    size = answer.headers.get("Content-Length")
    if not version or not size:
        raise DataError(
            f"the server of {shown(place)} names neither ETag nor Last-Modified, or no Content-Length: nobody could tell "
            "whether the shard changes; copy the shards to a disk or to S3"
        )
    return _file(place, int(size), version)


@contextmanager
def local_copy(
    place: str, known: RawFile, folder: Path, store: StoreConfig, *, keep: bool = False
) -> Iterator[Path]:
    """The shard itself, or a copy in `folder` that goes away afterwards unless it is to `keep`; one that is there already is
    used.

    Raises DataError for one that is gone, or is no longer what it was when it was identified; for a shard on a disk after
    the block, since its bytes may change within.
    """
    if not is_remote(place):
        yield Path(place)
        if file_sha256(Path(place)) != known.sha256:
            raise DataError(f"shard {place} changed while it was read; start again when it is complete")
        return
    path = folder / f"{known.sha256[:32]}.tar"
    try:
        if not path.is_file() or path.stat().st_size != known.bytes:
            folder.mkdir(parents=True, exist_ok=True)
            (_fetch_s3 if place.startswith(S3) else _fetch_web)(place, known, path, store)
        yield path
    finally:
        if not keep:
            path.unlink(missing_ok=True)


def _fetch_s3(place: str, known: RawFile, path: Path, store: StoreConfig) -> None:
    from steps.store.s3_source import s3_source

    bucket, _, key = place.removeprefix(S3).partition("/")
    source = s3_source(store, bucket)
    item = next((item for item in source.listed("", key) if item.key == key), None)
    _require(place, known, _file(place, item.bytes, item.etag) if item else None)
    assert item is not None  # noqa: S101 - _require
    source.copy(item, path)


def _fetch_web(place: str, known: RawFile, path: Path, _: StoreConfig) -> None:
    """A body that is not as long as was promised is asked for again."""
    partial = path.with_suffix(".partial")
    for number in range(1, _TRIES + 1):
        answer = _answer("GET", place, stream=True)
        try:
            _require(place, known, _described(place, answer))
            with no_space_is_said(name_of(place), path.parent), partial.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            partial.replace(path)
            return
        except urllib3.exceptions.HTTPError as error:
            reason = f"the answer broke off: {type(error).__name__}"
        finally:
            answer.release_conn()
            answer.close()
            partial.unlink(missing_ok=True)
        logger.warning("reading %s: %s, try %d of %d", shown(place), reason, number, _TRIES)
    raise DataError(f"shard {shown(place)} cannot be read: {reason}, {_TRIES} times; check the server")


def _require(place: str, known: RawFile, found: RawFile | None) -> None:
    if found is None:
        raise DataError(
            f"shard {shown(place)} is gone since it was listed; put it back or correct data.shards"
        )
    if found != known:
        raise DataError(f"shard {shown(place)} changed since it was listed; start again when it is complete")
