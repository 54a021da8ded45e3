"""The interface of a store: content-addressed objects, and small JSON documents under keys."""

from pathlib import Path
from typing import Protocol

from artifacts_schema.references import FolderRef, ObjectRef


class Store(Protocol):
    """Objects are named by the SHA-256 of their bytes; the same bytes are stored once. Writing is atomic.

    Documents are small JSON texts under a key (stage cache entries, run reports); writing one twice replaces it.
    """

    @property
    def root(self) -> str:
        """Where the store lives: a folder, or `s3://bucket/prefix`."""

    def put_file(self, path: Path) -> ObjectRef:
        """Store a file's bytes. Raises DiskFullError or StoreError; a failed write leaves nothing behind."""

    def put_bytes(self, data: bytes) -> ObjectRef:
        """Store bytes; see `put_file`."""

    def path_of(self, ref: ObjectRef) -> Path:
        """A local, read-only file with the object's bytes. Verifies the hash; raises StoreError naming the object."""

    def has(self, sha256: str) -> bool:
        """True when the object exists."""

    def put_document(self, key: str, text: str) -> None:
        """Write a JSON document atomically."""

    def get_document(self, key: str) -> str | None:
        """Read a JSON document, or None when there is none."""

    def list_documents(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""

    def work_folder(self, key: str) -> Path:
        """A local scratch folder that outlives the process; checkpoints of a stage live here under its cache key."""


def put_folder(store: Store, folder: Path) -> FolderRef:
    """Store every file of a folder, following no links out of it."""
    files = {
        path.relative_to(folder).as_posix(): store.put_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    return FolderRef(files=files)


def get_bytes(store: Store, ref: ObjectRef) -> bytes:
    """The object's bytes, verified."""
    return store.path_of(ref).read_bytes()
