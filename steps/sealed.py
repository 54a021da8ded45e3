"""Files of unfinished work: flushed to the disk, and JSON that carries its own hash.

What a later attempt goes on from must be what was written. A sealed file holds the hash of all it says under `seal`; one
without it (damaged there, or written by an earlier version) counts as damaged: else one wrong bit in that name would
switch the check off.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps.errors import DamagedError, DiskFullError

_SEAL = "seal"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with its hash, atomically and flushed to the disk. Raises DiskFullError and OSError."""
    # As it will be read: JSON knows no integer keys and no tuples.
    meant: dict[str, Any] = json.loads(json.dumps(content))
    partial = path.with_name(f".{path.name}.partial")
    with no_space_is_said(path.name, path.parent):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({**meant, _SEAL: _hash(meant)}), encoding="utf-8")
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """What was written. Raises DamagedError when it is not that, FileNotFoundError when there is no such file, and
    OSError when the disk does not answer.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON: {error}") from error
    seal = found.pop(_SEAL, None) if isinstance(found, dict) else None
    if seal is None:
        raise DamagedError(f"{path} carries no hash; an earlier version may have written it")
    if seal != _hash(found):
        raise DamagedError(f"{path} does not have the hash it was written with")
    return dict(found)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes or a folder's names, whatever happens to the machine. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def no_space_is_said(what: str, folder: Path) -> Iterator[None]:
    """Turn the failures of a full disk, whoever reports them, into DiskFullError; all others pass through."""
    try:
        yield
    except Exception as error:
        if _error_number(error) in _NO_SPACE:
            raise DiskFullError(f"no space left for {what} in {folder}; free some and resume") from error
        raise


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors gives it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None
