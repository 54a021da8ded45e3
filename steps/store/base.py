"""The interface of a store: content-addressed objects, and small JSON documents under keys."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from artifacts_schema.references import FolderRef, ObjectRef
from steps.files.errors import DamagedError
from steps.files.folder_files import folder_files

PARTIAL = ".partial-"  # begins the name of what a killed process left half written


@dataclass(frozen=True)
class Entry:
    """One stored thing: an object's SHA-256, a document's key or a work file's name; its bytes; seconds since it was
    written, by the clock of whoever keeps it.
    """

    name: str
    bytes: int
    age_s: float


class Mirror(Protocol):
    """A second place for the files of one work folder, so that a machine that loses it goes on from there.

    Names are relative POSIX paths. A file appears under its name only when it is complete.
    """

    def names(self) -> list[str]:
        """Names of all files there, sorted."""

    def send(self, name: str, path: Path) -> None:
        """Copy a file there, replacing one of that name. Raises StoreError."""

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file from there to `path`, atomically. Raises StoreError."""

    def remove(self, name: str) -> None:
        """Remove a file there; it is no error when there is none."""

    def below(self, folder: str) -> "Mirror":
        """The part of it whose names start with `folder/`; names there leave that out."""


class Store(Protocol):
    """Objects are named by the SHA-256 of their bytes; the same bytes are stored once. Writing is atomic.

    Documents are small JSON texts under a key (stage cache entries, run reports); writing one twice replaces it. Each
    is sealed (`steps.files.sealed`): what is read is what was written under that key.
    """

    @property
    def cache(self) -> "Store | None":
        """This machine's cache of the store; None when the store is on this very disk."""

    @property
    def cache_bytes(self) -> int | None:
        """Most that encoded shards of data take in the cache; None when there is none."""

    @property
    def root(self) -> str:
        """Where the store lives: a folder, or `s3://bucket/prefix`."""

    def check(self) -> None:
        """Raise StoreError, saying what is wrong, when the store cannot be read and written."""

    def put_file(self, path: Path) -> ObjectRef:
        """Store a file's bytes. Raises DiskFullError or StoreError; a failed write leaves nothing behind."""

    def put_bytes(self, data: bytes) -> ObjectRef:
        """Store bytes; see `put_file`."""

    def path_of(self, ref: ObjectRef) -> Path:
        """A local, read-only file with the object's bytes. Verifies the hash; raises StoreError naming the object."""

    def verify(self, sha256: str) -> None:
        """Read the object where the store keeps it. Raises DamagedError for other bytes, StoreError when it is gone."""

    def has(self, sha256: str, size: int | None = None) -> bool:
        """True when the object exists and, with `size`, has so many bytes. Its bytes are not read."""

    def put_document(self, key: str, text: str) -> None:
        """Write a JSON document atomically."""

    def get_document(self, key: str) -> str | None:
        """Read a JSON document, or None when there is none. Raises DamagedError when its bytes are not those written."""

    def swap_document(self, key: str, old: str | None, new: str) -> bool:
        """Write `new` only if the document still is `old` (None: none, or a damaged one); False when it is not.

        Of several that swap at once, one gets True. Texts must be unique (carry an owner), or a change and its
        reversal in between go unnoticed.
        """

    def list_documents(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""

    def documents(self, prefix: str) -> Iterator[Entry]:
        """Documents whose keys start with `prefix`, with their ages."""

    def delete_document(self, key: str) -> None:
        """Remove a document; it is no error when there is none."""

    def objects(self) -> Iterator[Entry]:
        """Every stored object, with its age: seconds since it was written.

        What a killed process left half written counts as well, under a name that begins with `PARTIAL`.
        """

    def delete_object(self, name: str) -> None:
        """Remove what `objects` gives under this name; it is no error when there is none."""

    def work_folder(self, key: str) -> Path:
        """A local scratch folder that outlives the process; checkpoints of a stage live here under its cache key."""

    def work(self) -> Iterator[Entry]:
        """Work folders, here and in the mirror, named `<stage>/<key>`; the age is that of the youngest file."""

    def delete_work(self, key: str) -> None:
        """Remove a work folder, here and in the mirror."""

    def mirror(self, key: str) -> Mirror | None:
        """Where the work folder's checkpoints are kept besides; None when the store is on this very disk."""


def by_work_key(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Files `<stage>/<key>/...` as one entry for each `<stage>/<key>`: bytes summed, the age of the youngest."""
    found: dict[str, Entry] = {}
    for entry in entries:
        parts = entry.name.split("/")
        if len(parts) > 2:
            name = "/".join(parts[:2])
            old = found.get(name, Entry(name, 0, entry.age_s))
            found[name] = Entry(name, old.bytes + entry.bytes, min(old.age_s, entry.age_s))
    yield from found.values()


def parse_document(key: str, text: str, kind: type = dict) -> Any:
    """The JSON value, an object unless `kind` says otherwise, of a document. Raises DamagedError that names it."""
    try:
        found = json.loads(text)
    except ValueError:
        valid = False
    else:
        valid = isinstance(found, kind)
    if not valid:
        raise DamagedError(
            f"document {key} is damaged: it must hold JSON but holds {text[:100]!r}; "
            "run `snapfusion fsck` on the store"
        )
    return found


def object_name(sha256: str) -> str:
    """Relative place of an object, `objects/<first two digits>/<sha256>`. Raises DamagedError for anything else."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise DamagedError(f"expected a SHA-256 in hex, found {sha256!r}")
    return f"objects/{sha256[:2]}/{sha256}"


def put_folder(store: Store, folder: Path) -> FolderRef:
    """Store every file of a folder, links to files as what they lead to. Raises StoreError, see `folder_files`."""
    files = {path.relative_to(folder).as_posix(): store.put_file(path) for path in folder_files(folder)}
    return FolderRef(files=files)


def get_folder(store: Store, ref: FolderRef, folder: Path) -> None:
    """Write a stored folder's files into `folder`, over those of the same names; every hash is verified.

    Copied, not linked: they are the user's to change, the store's objects are not. A file appears under its name only
    when it is complete. Raises DamagedError for a name that leads out of `folder`, StoreError for an object that is gone.
    """
    for name, file in ref.files.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise DamagedError(f"the stored file {name!r} leads out of {folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{PARTIAL}{path.name}")
        shutil.copyfile(store.path_of(file), partial)
        partial.replace(path)


def get_bytes(store: Store, ref: ObjectRef) -> bytes:
    """The object's bytes, verified."""
    return store.path_of(ref).read_bytes()
