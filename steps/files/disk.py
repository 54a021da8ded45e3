"""The disk: room asked for before anything is written, what is said when it is full, flushing and hashing, temporary files."""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steps.files.errors import DiskFullError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFTOVER_S = 7 * 24 * 3600.0  # no temporary file is used for that long


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises DiskFullError unless `needed` bytes are free where `folder` lies; `what` says what needs them."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"{what} needs about {needed / (1 << 20):.1f} MiB in {folder}, {free / (1 << 20):.1f} MiB are free; "
            "free some or use another disk, and try again"
        )


def used_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; one that goes away meanwhile counts as nothing."""
    used = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                used += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return used


def temporary_folder(folder: Path) -> Path:
    """A folder for temporary files, made if need be, without what processes that were killed left there a week ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        try:
            old = time.time() - path.lstat().st_mtime > _LEFTOVER_S
            if old and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif old:
                path.unlink()
        except FileNotFoundError:  # its owner, or another process that tidies up, was faster
            continue
    return folder


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
        if _error_number(error) in NO_SPACE:
            raise DiskFullError(f"no space left for {what} in {folder}; free some and resume") from error
        raise


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors gives it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None
