"""What the local store does with single files: make, read, hash and flush them."""

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from steps.files.errors import DamagedError, StoreError
from steps.store.base import PARTIAL, Entry


class HashingWriter:
    """Writes to a file and hashes what it writes. It cannot seek, so that bytes can only come in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of everything written so far."""
        return self._digest.hexdigest()


def new_partial(folder: Path) -> Path:
    """A new, empty file with a name of its own. Raises OSError.

    Unlike those of `tempfile` it has the rights that the umask leaves, so that a store can be shared.
    """
    path = folder / f"{PARTIAL}{uuid.uuid4().hex}"
    path.touch(exist_ok=False)
    return path


def flush(file: IO[Any]) -> None:
    """Have the disk hold what was written to a file, whatever happens to the machine. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what keeps `path` from being read into a StoreError; that it does not exist passes through.

    What the disk has lost is damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise (DamagedError if error.errno == errno.EIO else StoreError)(
            f"cannot read {path}: {error.strerror}; check the disk, and that user {os.geteuid()} may read the store"
        ) from error


def read_bytes(path: Path) -> bytes | None:
    """A file's bytes, or None when there is none. Raises StoreError when it cannot be read."""
    try:
        with reading(path):
            return path.read_bytes()
    except FileNotFoundError:
        return None


def entry_of(name: str, path: Path) -> Iterator[Entry]:
    """The entry of a file, or nothing when it went away meanwhile."""
    with suppress(FileNotFoundError):
        found = path.stat()
        yield Entry(name, found.st_size, time.time() - found.st_mtime)
