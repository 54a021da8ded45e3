"""A store in an S3 bucket, with a local cache.

Layout below the prefix: `objects/<first two hex digits>/<sha256>`, `documents/<key>.json`, `work/<key>/<file>` (the
checkpoints of unfinished stages) and `layout.json`. Objects are downloaded once into a local folder and verified there
at every read; scratch files stay local.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import botocore.exceptions

from artifacts_schema.config import StoreConfig
from artifacts_schema.references import ObjectRef
from steps.files.errors import DamagedError, StoreError
from steps.store.base import PARTIAL, Entry, Mirror, by_work_key, object_name
from steps.store.layout import check_layout, mark_new
from steps.store.local import LocalStore
from steps.store.s3_bucket import Bucket, age_s
from steps.store.s3_client import code_of, is_absent

logger = logging.getLogger(__name__)
_FRESH_S = (
    1800.0  # an object that is stored again is written again when it is older, so that nobody collects it
)
_LAYOUT = "layout.json"
_REMOVAL_S = 60.0  # an announced removal takes two requests; after so long its collector is dead


class S3Store:
    """See `steps.store.base.Store`."""

    def __init__(self, config: StoreConfig, local: Path, *, any_layout: bool = False) -> None:
        """`local` is the folder for cache and scratch files. No request is made before the store is used.

        `any_layout` is for a migration: the layout of the cache is neither checked nor marked.
        """
        self.bucket = Bucket(config)
        self.local = LocalStore(local, durable=False, any_layout=any_layout)
        self._damaged: set[str] = set()  # objects that this process found damaged on the server

    @property
    def root(self) -> str:
        """`s3://bucket/prefix`."""
        return str(self.bucket.location)

    def check(self) -> None:
        """See Store: bucket, layout, and the rights to write, read, list and remove."""
        self.local.check()
        self.bucket.require()
        mark_new(self)
        check_layout(self)
        key = f"probes/{uuid.uuid4().hex}"
        self.put_document(key, '{"probe": true}')
        if self.get_document(key) is None or self.list_documents(key) != [key]:
            raise StoreError(f"{self.root} does not show what was just written to it; it cannot hold a store")
        self.delete_document(key)

    def read_layout(self) -> str | None:
        """See Store."""
        found = self.bucket.read(_LAYOUT)
        return found[0] if found else None

    def swap_layout(self, old: str | None, new: str) -> bool:
        """See Store and `swap_document`."""
        return self._swap(_LAYOUT, old, new)

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
        name = object_name(ref.sha256)

        def download() -> None:
            self.local.put_stream(
                lambda target: self.bucket.fetch(name, target, ref.bytes), expected=ref.sha256
            )

        try:
            self.bucket.attempt(f"reading object {ref.sha256}", download)
        except DamagedError as error:
            self._damaged.add(ref.sha256)
            raise DamagedError(
                f"{error}; delete {self.root}/{name} and rerun the stage that made it"
            ) from error
        except botocore.exceptions.ClientError as error:
            raise StoreError(
                f"object {ref.sha256} is not in the store {self.root}; rerun the stage that made it"
            ) from error
        self._damaged.discard(ref.sha256)
        return self.local.folder / name

    def has(self, sha256: str, size: int | None = None) -> bool:
        """See Store: asks the server, whatever the local cache holds. Not what this process found damaged there."""
        found = self.bucket.head(object_name(sha256))
        whole = found is not None and size in (None, found["ContentLength"])
        return whole and sha256 not in self._damaged

    def put_document(self, key: str, text: str) -> None:
        """See Store."""
        self.bucket.write(_document(key), text)

    def get_document(self, key: str) -> str | None:
        """See Store."""
        found = self.bucket.read(_document(key))
        return found[0] if found else None

    def swap_document(self, key: str, old: str | None, new: str) -> bool:
        """See Store. On a server without conditional writes two that swap at once can both get True."""
        return self._swap(_document(key), old, new)

    def _swap(self, name: str, old: str | None, new: str) -> bool:
        found = self.bucket.read(name)
        if (found[0] if found else None) != old:
            return False
        condition: dict[str, str] = {}
        if self.has_conditional_writes:
            condition = {"IfMatch": found[1]} if found else {"IfNoneMatch": "*"}
        try:
            self.bucket.write(name, new, **condition)
        except botocore.exceptions.ClientError as error:
            if code_of(error) != "PreconditionFailed" and not is_absent(error):
                raise
        else:
            if condition:
                return True
        # Without conditions the last of several wins; with them, perhaps a first try of ours came through and only its
        # answer was lost.
        found = self.bucket.read(name)
        return found is not None and found[0] == new

    @cached_property
    def has_conditional_writes(self) -> bool:
        """True when the server refuses a second conditional creation; asked once, with a key of its own."""
        key = f"probes/{uuid.uuid4().hex}"
        works = False
        try:
            for number in range(2):
                self.bucket.write(_document(key), f'{{"probe": {number}}}', IfNoneMatch="*")
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

    def delete_object(self, sha256: str, *, min_age_s: float = 0.0) -> bool:
        """See Store. S3 has no removal that depends on an age, so the removal is announced before the age is asked for.

        Who stores the same bytes writes first and then looks for the announcement (`_send`): either this method sees
        a young object, or the writer sees that it may go, and writes again.
        """
        if sha256.startswith(PARTIAL):
            upload, _, name = sha256.removeprefix(PARTIAL).partition(":")
            self.bucket.abort_upload(name, upload)
            return True
        name, mark = object_name(sha256), _removal(sha256)
        found = self.bucket.head(name)
        if found is None or age_s(found) < min_age_s:
            return False
        self.bucket.write(mark, json.dumps({"removes": name}))
        try:
            found = self.bucket.head(name)
            if found is None or age_s(found) < min_age_s:
                return False
            self.bucket.remove(name)
        finally:
            self.bucket.remove(mark)
        self.local.delete_object(sha256)
        return True

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
        """Send an object from the local cache, unless the server has it recently written and, for all we know, whole."""
        name = object_name(ref.sha256)
        found = self.bucket.head(name)
        whole = found is not None and found["ContentLength"] == ref.bytes and ref.sha256 not in self._damaged
        if whole and age_s(found) <= _FRESH_S:
            return ref
        self.bucket.send(name, self.local.folder / name, f"storing object {ref.sha256}")
        self._outlast_removal(ref.sha256)
        if self.bucket.head(name) is None:
            self.bucket.send(name, self.local.folder / name, f"storing object {ref.sha256} again")
        self._damaged.discard(ref.sha256)
        return ref

    def _outlast_removal(self, sha256: str) -> None:
        """Wait until a removal of an old object that was announced is over. A collector that died leaves its mark."""
        until = time.monotonic() + _REMOVAL_S
        while self.bucket.head(_removal(sha256)) is not None:
            if time.monotonic() > until:
                logger.warning("a removal of object %s was announced and never ended; going on", sha256)
                self.bucket.remove(_removal(sha256))
                return
            time.sleep(0.2)


class S3Mirror:
    """See `steps.store.base.Mirror`: the work folder's files below `work/<key>/` in the bucket."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    def names(self) -> list[str]:
        """See Mirror."""
        return [entry.name.removeprefix(self._prefix) for entry in self._bucket.list(self._prefix)]

    def send(self, name: str, path: Path) -> None:
        """See Mirror."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._bucket.send(self._prefix + _safe(name), path, f"sending {name}", sha256=sha256)

    def fetch(self, name: str, path: Path) -> None:
        """See Mirror. Verifies the hash that the file was sent with."""
        self._bucket.fetch_file(self._prefix + _safe(name), path)

    def remove(self, name: str) -> None:
        """See Mirror."""
        self._bucket.remove(self._prefix + _safe(name))


def _safe(key: str) -> str:
    """The key, if it stays below the place it is meant for."""
    if key.startswith("/") or ".." in key.split("/"):
        raise StoreError(f"key {key!r} leads out of the store")
    return key


def _removal(sha256: str) -> str:
    """Where the removal of an object is announced: below `work/`, where a run may remove what a collector left."""
    return f"work/.removals/{sha256}"


def _document(key: str) -> str:
    return f"documents/{_safe(key)}.json"
