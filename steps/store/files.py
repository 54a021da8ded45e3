"""What the local store does with single files: make, read, hash and flush them."""

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Turn what keeps `path` from being read into a StoreError; that it does not exist passes through."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror}; check the disk, and that user {os.geteuid()} may read the store"
        ) from error


def read_text(path: Path) -> str | None:
    """A file's text, or None when there is none. Raises DamagedError for bytes that are no text."""
    try:
        with reading(path):
            return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is damaged: it holds no text") from error


def entry_of(name: str, path: Path, *, last_use: bool = False) -> Iterator[Entry]:
    """The entry of a file, or nothing when it went away meanwhile. Its age counts from the last writing, or use."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    # The time of change also moves when a file is linked here, and with `touch`.
    moment = max(found.st_mtime, found.st_ctime) if last_use else found.st_mtime
    yield Entry(name, found.st_size, time.time() - moment)


def touch(path: Path) -> None:
    """Renew the time of change alone: the file may be a link to one of the user's, whose time of writing stays."""
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
