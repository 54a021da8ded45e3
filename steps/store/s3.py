"""A store in an S3 bucket, with a local cache.

Layout below the prefix: `objects/<first two hex digits>/<sha256>`, `documents/<key>.json`, `work/<key>/<file>` (the
checkpoints of unfinished stages) and `layout.json`. Objects are downloaded once into a local folder and verified there
at every read; scratch files stay local.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import botocore.exceptions

from artifacts_schema.references import ObjectRef
from artifacts_schema.run_configs import StoreConfig
from steps.files.disk import file_sha256
from steps.files.errors import DamagedError, StoreError
from steps.files.sealed import seal, unseal
from steps.store.base import PARTIAL, Entry, Mirror, by_work_key, object_name
from steps.store.files import HashingWriter
from steps.store.layout import LAYOUT_FILE, check_layout, marker
from steps.store.local import LocalStore
from steps.store.s3_bucket import Bucket
from steps.store.s3_client import code_of, is_absent

logger = logging.getLogger(__name__)


class S3Store:
    """See `steps.store.base.Store`."""

    def __init__(self, config: StoreConfig, local: Path) -> None:
        """`local` is the folder for cache and scratch files. No request is made before the store is used."""
        self.bucket = Bucket(config)
        self.local = LocalStore(local, durable=False)
        self._config = config
        self._damaged: set[str] = set()  # objects that this process found damaged on the server

    def __reduce__(self) -> tuple[type["S3Store"], tuple[StoreConfig, Path]]:
        return S3Store, (self._config, self.local.folder)  # connections go to no other process

    @property
    def root(self) -> str:
        """`s3://bucket/prefix`."""
        return str(self.bucket.location)

    @property
    def cache(self) -> LocalStore:
        """See Store."""
        return self.local

    @property
    def cache_bytes(self) -> int:
        """See Store."""
        return int(self._config.cache_gib * (1 << 30))

    def require_layout(self, *, new: bool = False) -> None:
        """Raise StoreError for a layout that this version does not read; with `new`, mark a store that has none."""
        found = self.bucket.read(LAYOUT_FILE, _text)
        check_layout(found[0] if found else None, self.root)
        if new and found is None:
            self.bucket.write(LAYOUT_FILE, marker().encode())

    def check(self) -> None:
        """See Store: bucket, layout, and the rights to write, read, list and remove."""
        self.local.check()
        self.bucket.require()
        self.require_layout(new=True)
        key = f"probes/{uuid.uuid4().hex}"
        self.put_document(key, '{"probe": true}')
        if self.get_document(key) is None or self.list_documents(key) != [key]:
            raise StoreError(f"{self.root} does not show what was just written to it; it cannot hold a store")
        self.delete_document(key)

    def put_file(self, path: Path) -> ObjectRef:
        """See Store. The file must not be changed afterwards; where the disk allows, the cache shares its bytes."""
        return self._send(self.local.adopt_file(path))

    def put_bytes(self, data: bytes) -> ObjectRef:
        """See Store."""
        return self._send(self.local.put_bytes(data))

    def path_of(self, ref: ObjectRef) -> Path:
        """See Store. Downloads the object unless the local cache has it."""
        if self.local.has(ref.sha256):
            try:
                return self.local.path_of(ref)
            except DamagedError as error:
                logger.warning("%s; fetching it again", error)
                self.local.delete_object(ref.sha256)
        self._fetch(
            ref.sha256,
            lambda: self.local.put_stream(
                lambda target: self.bucket.fetch(object_name(ref.sha256), target, ref.bytes),
                expected=ref.sha256,
            ),
        )
        return self.local.folder / object_name(ref.sha256)

    def verify(self, sha256: str) -> None:
        """See Store."""

        def read() -> None:
            with open(os.devnull, "wb") as nowhere:
                target = HashingWriter(nowhere)
                self.bucket.fetch(object_name(sha256), target)
            if target.sha256 != sha256:
                raise DamagedError(f"expected bytes of SHA-256 {sha256}, found {target.sha256}")

        self._fetch(sha256, read)

    def _fetch(self, sha256: str, action: Callable[[], object]) -> None:
        """Call what reads an object from the server, again if need be."""
        try:
            self.bucket.attempt(f"reading object {sha256}", action)
        except DamagedError as error:
            self._damaged.add(sha256)
            place = f"{self.root}/{object_name(sha256)}"
            raise DamagedError(f"{error}; delete {place} and rerun the stage that made it") from error
        except botocore.exceptions.ClientError as error:
            raise StoreError(
                f"object {sha256} is not in the store {self.root}; rerun the stage that made it"
            ) from error
        self._damaged.discard(sha256)

    def has(self, sha256: str, size: int | None = None) -> bool:
        """See Store: asks the server, whatever the local cache holds. Not what this process found damaged there."""
        found = self.bucket.head(object_name(sha256))
        whole = found is not None and size in (None, found["ContentLength"])
        return whole and sha256 not in self._damaged

    def put_document(self, key: str, text: str) -> None:
        """See Store."""
        self.bucket.write(_document(key), seal(key, text))

    def get_document(self, key: str) -> str | None:
        """See Store."""
        found = self._read(key)
        return found[0] if found else None

    def _read(self, key: str) -> tuple[str, str] | None:
        """Text and ETag of a document."""
        return self.bucket.read(_document(key), lambda data: unseal(key, data))

    def swap_document(self, key: str, old: str | None, new: str) -> bool:
        """See Store. On a server without conditional writes two that swap at once can both get True."""
        name = _document(key)
        try:
            found = self._read(key)
            etag = found[1] if found else None
        except DamagedError:
            found, etag = None, (self.bucket.head(name) or {}).get("ETag")
        if (found[0] if found else None) != old:
            return False
        condition: dict[str, str] = {}
        if self.has_conditional_writes:
            condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            self.bucket.write(name, seal(key, new), **condition)
        except botocore.exceptions.ClientError as error:
            if code_of(error) != "PreconditionFailed" and not is_absent(error):
                raise
        else:
            if condition:
                return True
        # Without conditions the last of several wins; with them, perhaps a first try of ours came through and only its
        # answer was lost.
        return self.get_document(key) == new

    @cached_property
    def has_conditional_writes(self) -> bool:
        """True when the server refuses a second conditional creation; asked once, with a key of its own."""
        key = f"probes/{uuid.uuid4().hex}"
        works = False
        try:
            for number in range(2):
                self.bucket.write(_document(key), seal(key, str(number)), IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            works = code_of(error) == "PreconditionFailed"
        except StoreError as error:
            if "NotImplemented" not in str(error):
                raise
        self.delete_document(key)
        if not works:
            logger.warning(
                "%s has no conditional writes: two runs may do the same work at once, and of two that promote at "
                "once the last wins", self.root,
            )  # fmt: skip
        return works

    def list_documents(self, prefix: str) -> list[str]:
        """See Store."""
        return sorted(entry.name for entry in self.documents(prefix))

    def documents(self, prefix: str) -> Iterator[Entry]:
        """See Store."""
        for entry in self.bucket.list(f"documents/{prefix}"):
            if entry.name.endswith(".json"):
                key = entry.name.removeprefix("documents/").removesuffix(".json")
                yield Entry(key, entry.bytes, entry.age_s)

    def delete_document(self, key: str) -> None:
        """See Store."""
        self.bucket.remove(_document(key))

    def objects(self) -> Iterator[Entry]:
        """See Store. Of uploads that nobody has ended the bytes are not known."""
        for entry in self.bucket.list("objects/"):
            yield Entry(entry.name.rpartition("/")[2], entry.bytes, entry.age_s)
        for name, upload, age in self.bucket.uploads():
            yield Entry(f"{PARTIAL}{upload}:{name}", 0, age)

    def delete_object(self, name: str) -> None:
        """See Store; the cache's copy goes, too."""
        if name.startswith(PARTIAL):
            upload, _, of = name.removeprefix(PARTIAL).partition(":")
            self.bucket.abort_upload(of, upload)
        else:
            self.bucket.remove(object_name(name))
            self.local.delete_object(name)

    def work_folder(self, key: str) -> Path:
        """See Store: always local."""
        return self.local.work_folder(key)

    def work(self) -> Iterator[Entry]:
        """See Store."""
        remote = (
            Entry(entry.name.removeprefix("work/"), entry.bytes, entry.age_s)
            for entry in self.bucket.list("work/")
        )
        here = (Entry(f"{entry.name}/.", entry.bytes, entry.age_s) for entry in self.local.work())
        yield from by_work_key((*remote, *here))

    def delete_work(self, key: str) -> None:
        """See Store."""
        for entry in list(self.bucket.list(f"work/{_safe(key)}/")):
            self.bucket.remove(entry.name)
        self.local.delete_work(key)

    def mirror(self, key: str) -> Mirror | None:
        """See Store."""
        return S3Mirror(self.bucket, f"work/{_safe(key)}/")

    def _send(self, ref: ObjectRef) -> ObjectRef:
        """Send an object from the local cache, unless the server has it and, for all we know, whole."""
        if not self.has(ref.sha256, ref.bytes):
            name = object_name(ref.sha256)
            self.bucket.send(name, self.local.folder / name, f"storing object {ref.sha256}")
            self._damaged.discard(ref.sha256)
        return ref


class S3Mirror:
    """See `steps.store.base.Mirror`: the work folder's files below `work/<key>/` in the bucket."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    def names(self) -> list[str]:
        """See Mirror."""
        return [entry.name.removeprefix(self._prefix) for entry in self._bucket.list(self._prefix)]

    def send(self, name: str, path: Path) -> None:
        """See Mirror."""
        self._bucket.send(self._prefix + _safe(name), path, f"sending {name}", sha256=file_sha256(path))

    def fetch(self, name: str, path: Path) -> None:
        """See Mirror. Verifies the hash that the file was sent with."""
        self._bucket.fetch_file(self._prefix + _safe(name), path)

    def remove(self, name: str) -> None:
        """See Mirror."""
        self._bucket.remove(self._prefix + _safe(name))

    def below(self, folder: str) -> Mirror:
        """See Mirror."""
        return S3Mirror(self._bucket, f"{self._prefix}{_safe(folder)}/")


def _safe(key: str) -> str:
    """The key, if it stays below the place it is meant for."""
    if key.startswith("/") or ".." in key.split("/"):
        raise StoreError(f"key {key!r} leads out of the store")
    return key


def _document(key: str) -> str:
    return f"documents/{_safe(key)}.json"


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
