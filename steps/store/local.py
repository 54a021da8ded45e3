"""A store in a local folder.

Layout: `objects/<first two hex digits>/<sha256>`, `documents/<key>.json`, `work/<key>/`, and `layout.json` with the
layout's version.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts_schema.references import ObjectRef
from steps.errors import DiskFullError, StoreError

LAYOUT_VERSION = 1
_CHUNK = 1 << 20


class LocalStore:
    """See `steps.store.base.Store`."""

    def __init__(self, root: Path) -> None:
        """Open or create the store. Raises StoreError for a layout this version cannot read."""
        self.folder = root.resolve()
        try:
            for name in ("objects", "documents", "work"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the store in {self.folder}: {error.strerror}") from error
        self._check_layout()

    @property
    def root(self) -> str:
        """The store's folder."""
        return str(self.folder)

    def put_file(self, path: Path) -> ObjectRef:
        """See Store."""
        with self._partial() as partial:
            digest, size = hashlib.sha256(), 0
            with path.open("rb") as source, partial.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
                    size += len(chunk)
                target.flush()
                os.fsync(target.fileno())
            return self._publish(partial, digest.hexdigest(), size)

    def put_bytes(self, data: bytes) -> ObjectRef:
        """See Store."""
        with self._partial() as partial:
            with partial.open("wb") as target:
                target.write(data)
                target.flush()
                os.fsync(target.fileno())
            return self._publish(partial, hashlib.sha256(data).hexdigest(), len(data))

    def path_of(self, ref: ObjectRef) -> Path:
        """See Store."""
        path = self._object(ref.sha256)
        if not path.is_file():
            raise StoreError(
                f"object {ref.sha256} is not in the store {self.folder}; rerun the stage that made it"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != ref.sha256:
            raise StoreError(
                f"object {ref.sha256} in {self.folder} is damaged: its bytes hash to {found[:12]}...; "
                f"delete {path} and rerun the stage that made it"
            )
        return path

    def has(self, sha256: str) -> bool:
        """See Store."""
        return self._object(sha256).is_file()

    def put_document(self, key: str, text: str) -> None:
        """See Store."""
        path = self._document(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._partial() as partial:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)

    def get_document(self, key: str) -> str | None:
        """See Store."""
        path = self._document(key)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def list_documents(self, prefix: str) -> list[str]:
        """See Store."""
        folder = self.folder / "documents"
        keys = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")]
        return sorted(key for key in keys if key.startswith(prefix))

    def work_folder(self, key: str) -> Path:
        """See Store."""
        path = self._inside(self.folder / "work", key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _object(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise StoreError(f"expected a SHA-256 in hex, found {sha256!r}")
        return self.folder / "objects" / sha256[:2] / sha256

    def _document(self, key: str) -> Path:
        return self._inside(self.folder / "documents", f"{key}.json")

    @staticmethod
    def _inside(folder: Path, key: str) -> Path:
        path = (folder / key).resolve()
        if not path.is_relative_to(folder):
            raise StoreError(f"key {key!r} leads out of the store")
        return path

    @contextmanager
    def _partial(self) -> Iterator[Path]:
        """A temporary file inside the store, so that publishing it is a rename; removed if anything goes wrong."""
        try:
            handle, name = tempfile.mkstemp(dir=self.folder / "objects", prefix=".partial-")
        except OSError as error:
            raise self._translate(error) from error
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
        except OSError as error:
            raise self._translate(error) from error
        finally:
            partial.unlink(missing_ok=True)

    def _publish(self, partial: Path, sha256: str, size: int) -> ObjectRef:
        final = self._object(sha256)
        final.parent.mkdir(exist_ok=True)
        partial.chmod(0o444)
        partial.replace(final)
        return ObjectRef(uri=f"sha256:{sha256}", sha256=sha256, bytes=size)

    def _translate(self, error: OSError) -> StoreError:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(self.folder).free
            return DiskFullError(
                f"no space left in {self.folder} ({free >> 20} MiB free); free some and resume"
            )
        return StoreError(f"cannot write to the store {self.folder}: {error}")

    def _check_layout(self) -> None:
        path = self.folder / "layout.json"
        if not path.exists():
            with self._partial() as partial:
                partial.write_text(json.dumps({"version": LAYOUT_VERSION}))
                partial.replace(path)
        found = json.loads(path.read_text()).get("version")
        if found != LAYOUT_VERSION:
            raise StoreError(
                f"the store {self.folder} has layout version {found}, this program reads {LAYOUT_VERSION}"
            )
