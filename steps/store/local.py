"""A store in a local folder.

Layout: `objects/<first two hex digits>/<sha256>`, `documents/<key>.json`, `work/<key>/`, and `layout.json` with the
layout's version (`steps/store/layout.py`). Documents are sealed.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts_schema.references import ObjectRef
from steps.files.disk import NO_SPACE, file_sha256, sync
from steps.files.errors import DamagedError, DiskFullError, StoreError
from steps.files.sealed import seal, unseal
from steps.store.base import PARTIAL, Entry, Mirror, by_work_key, object_name
from steps.store.files import HashingWriter, entry_of, flush, new_partial, read_bytes, reading
from steps.store.layout import LAYOUT_FILE, check_layout, marker

_CHUNK = 1 << 20


class LocalStore:
    """See `steps.store.base.Store`."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        """Open or create the store. Raises StoreError for a layout this version cannot read.

        `durable = False` leaves out the flush to disk: for a cache, whose objects are verified at every read and can
        be fetched again.
        """
        self.folder = root.resolve()
        self._durable = durable
        layout = self.folder / LAYOUT_FILE
        try:
            for name in ("objects", "documents", "work"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the store in {self.folder}: {error.strerror}") from error
        text = read_bytes(layout)
        check_layout(None if text is None else text.decode(errors="replace"), self.root)
        if text is None:
            self._write(layout, marker().encode())

    @property
    def root(self) -> str:
        """The store's folder."""
        return str(self.folder)

    @property
    def cache(self) -> None:
        """See Store."""

    @property
    def cache_bytes(self) -> None:
        """See Store."""

    def check(self) -> None:
        """See Store."""
        for folder in (self.folder / "documents", self.folder / "work"):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StoreError(f"the store {self.folder} is read-only: cannot write to {folder}")
        with self._partial() as partial:
            partial.write_bytes(b"probe")

    def put_file(self, path: Path) -> ObjectRef:
        """See Store."""

        def copy(target: HashingWriter) -> None:
            with path.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)

        return self.put_stream(copy)

    def adopt_file(self, path: Path) -> ObjectRef:
        """As `put_file`, without a copy where the file lies on the same file system: for a cache.

        Whoever changes the file later changes the object; every read verifies it, and a cache fetches it again.
        """
        sha256 = file_sha256(path)
        with self._partial() as partial:
            partial.unlink()
            try:
                os.link(path.resolve(), partial)
            except OSError:  # another file system, or one without links
                return self.put_file(path)
            size = partial.stat().st_size
            self._publish(partial, sha256)
        return ObjectRef(uri=f"sha256:{sha256}", sha256=sha256, bytes=size)

    def put_bytes(self, data: bytes) -> ObjectRef:
        """See Store."""
        return self.put_stream(lambda target: target.write(data))

    def put_stream(
        self, write: Callable[[HashingWriter], object], *, expected: str | None = None
    ) -> ObjectRef:
        """Store what `write` writes. Raises DamagedError, and keeps nothing, when its hash is not `expected`."""
        with self._partial() as partial:
            with partial.open("wb") as file:
                target = HashingWriter(file)
                write(target)
                if self._durable:
                    flush(file)
            if expected not in (None, target.sha256):
                raise DamagedError(f"expected bytes of SHA-256 {expected}, found {target.sha256}")
            partial.chmod(0o444)
            self._publish(partial, target.sha256)
            return ObjectRef(uri=f"sha256:{target.sha256}", sha256=target.sha256, bytes=target.size)

    def _publish(self, partial: Path, sha256: str) -> None:
        """Give a finished file its name."""
        final = self._object(sha256)
        final.parent.mkdir(exist_ok=True)
        partial.replace(final)
        if self._durable:
            sync(final.parent)

    def path_of(self, ref: ObjectRef) -> Path:
        """See Store."""
        self.verify(ref.sha256)
        return self._object(ref.sha256)

    def verify(self, sha256: str) -> None:
        """See Store."""
        path = self._object(sha256)
        try:
            with reading(path):
                found = file_sha256(path)
        except FileNotFoundError as error:
            raise StoreError(
                f"object {sha256} is not in the store {self.folder}; rerun the stage that made it"
            ) from error
        if found != sha256:
            raise DamagedError(
                f"object {sha256} in {self.folder} is damaged: its bytes hash to {found[:12]}...; "
                f"delete {path} and rerun the stage that made it"
            )

    def has(self, sha256: str, size: int | None = None) -> bool:
        """See Store."""
        path = self._object(sha256)
        try:
            with reading(path):
                return size in (None, path.stat().st_size)
        except FileNotFoundError:
            return False

    def put_document(self, key: str, text: str) -> None:
        """See Store."""
        self._write(self._document(key), seal(key, text))

    def get_document(self, key: str) -> str | None:
        """See Store."""
        found = read_bytes(self._document(key))
        return None if found is None else unseal(key, found)

    def swap_document(self, key: str, old: str | None, new: str) -> bool:
        """See Store. The swap happens under a file lock, which also holds on NFS 4."""
        with self._locked():
            try:
                found = self.get_document(key)
            except DamagedError:
                found = None
            if found != old:
                return False
            self.put_document(key, new)
            return True

    def list_documents(self, prefix: str) -> list[str]:
        """See Store."""
        return sorted(entry.name for entry in self.documents(prefix))

    def documents(self, prefix: str) -> Iterator[Entry]:
        """See Store."""
        folder = self.folder / "documents"
        for path in folder.rglob("*.json"):
            key = path.relative_to(folder).as_posix().removesuffix(".json")
            if key.startswith(prefix):
                yield from entry_of(key, path)

    def delete_document(self, key: str) -> None:
        """See Store."""
        self._document(key).unlink(missing_ok=True)

    def objects(self) -> Iterator[Entry]:
        """See Store."""
        for path in (self.folder / "objects").rglob("*"):
            if path.is_file():
                yield from entry_of(path.name, path)

    def delete_object(self, name: str) -> None:
        """See Store."""
        partial = name.startswith(PARTIAL)
        path = self._inside(self.folder / "objects", name) if partial else self._object(name)
        path.unlink(missing_ok=True)

    def work_folder(self, key: str) -> Path:
        """See Store."""
        path = self._inside(self.folder / "work", key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def work(self) -> Iterator[Entry]:
        """See Store."""
        folder = self.folder / "work"
        files = (path for path in folder.rglob("*") if path.is_file())
        yield from by_work_key(
            e for path in files for e in entry_of(path.relative_to(folder).as_posix(), path)
        )

    def delete_work(self, key: str) -> None:
        """See Store."""
        path = self._inside(self.folder / "work", key)
        if path != self.folder / "work":
            shutil.rmtree(path, ignore_errors=True)

    def mirror(self, key: str) -> Mirror | None:
        """See Store: the work folder and the store share a disk."""
        return None

    def _write(self, path: Path, data: bytes) -> None:
        with self._partial() as partial:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                if self._durable:
                    flush(file)
            partial.replace(path)
            if self._durable:
                sync(path.parent)

    def _object(self, sha256: str) -> Path:
        return self.folder / object_name(sha256)

    def _document(self, key: str) -> Path:
        return self._inside(self.folder / "documents", f"{key}.json")

    @staticmethod
    def _inside(folder: Path, key: str) -> Path:
        path = (folder / key).resolve()
        if not path.is_relative_to(folder):
            raise StoreError(f"key {key!r} leads out of the store")
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the one lock on documents; for moments only."""
        try:
            file = (self.folder / ".documents.lock").open("ab")
        except OSError as error:
            raise self._translate(error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:  # a network file system without locks
                raise self._translate(error) from error
            yield

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """A temporary file inside the store, so that publishing it is a rename; removed if anything goes wrong."""
        try:
            partial = new_partial(self.folder / "objects")
        except OSError as error:
            raise self._translate(error) from error
        try:
            yield partial
        except OSError as error:
            raise self._translate(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _translate(self, error: OSError) -> StoreError:
        if error.errno in NO_SPACE:
            free = shutil.disk_usage(self.folder).free
            return DiskFullError(
                f"no space left in {self.folder} ({free >> 20} MiB free); free some and resume"
            )
        return StoreError(f"cannot write to the store {self.folder}: {error}")
