"""SHA-256 of large files, each read once: remembered on disk by path, size, times of change and inode."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steps.files.errors import DamagedError, DataError, DiskFullError
from steps.files.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from steps.files.progress import Progress

logger = logging.getLogger(__name__)
_CHUNK = 8 << 20
_MIB = 1 << 20
_LONG_BYTES = 512 * _MIB  # from here on reading takes seconds, and is shown
# A file that changed so lately can change again within one tick of its file system's clock, unseen.
_SETTLED_NS = 2_000_000_000


class FileHashes:
    """Knows the hashes of files it has read before, in this process or another."""

    def __init__(self, folder: Path, progress: "Callable[[], Progress] | None" = None) -> None:
        """`folder` holds one note a file. `progress` makes what shows that reading takes long; it may import torch."""
        self._folder = folder
        self._progress = progress

    def of(self, paths: Sequence[Path]) -> list[str]:
        """SHA-256 (hex) of every file, in order. Raises DataError for one that changes while it is read."""
        known = {path: self._recall(path) for path in paths}
        unread = [path for path, sha256 in known.items() if sha256 is None]
        size = sum(path.stat().st_size for path in unread)
        progress = self._progress() if self._progress and size >= _LONG_BYTES else None
        if progress:
            progress.start(f"hashing {len(unread)} files (MiB)", size // _MIB)
        done = 0

        def count(read: int) -> None:
            nonlocal done
            done += read
            if progress:
                progress.update(done // _MIB)

        try:
            for path in unread:
                known[path] = self._read(path, count)
        finally:
            if progress:
                progress.close()
        return [str(known[path]) for path in paths]

    def _read(self, path: Path, count: Callable[[int], None]) -> str:
        began, before = time.time_ns(), _stamp(path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                count(len(chunk))
        if _stamp(path) != before:
            raise DataError(f"{path} changed while it was read; start again when it is complete")
        if began - path.stat().st_mtime_ns > _SETTLED_NS:
            self._remember(path, before, digest.hexdigest())
        return digest.hexdigest()

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"

    def _recall(self, path: Path) -> str | None:
        try:
            note = read_sealed(self._note(path))
            return str(note["sha256"]) if note["stamp"] == _stamp(path) else None
        except (OSError, DamagedError, KeyError):
            return None  # never read, or a damaged note

    def _remember(self, path: Path, stamp: list[int], sha256: str) -> None:
        """A note that cannot be written costs another reading, no more."""
        note = {"path": str(path.resolve()), "stamp": stamp, "sha256": sha256}
        try:
            write_sealed(self._note(path), note)
        except (OSError, DiskFullError) as error:
            logger.warning("the hash of %s cannot be remembered in %s: %s", path, self._folder, error)


def _stamp(path: Path) -> list[int]:
    """What changes when a file does: size, times of change (ns), inode. Nobody can set the second time back."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
