"""Objects of a store on a server, kept on this machine's disk within a number of bytes; the longest unused goes first."""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from artifacts_schema.references import ObjectRef
from steps.files.errors import DiskFullError
from steps.store.base import Store


class ShardCache:
    """The part of a store's cache that holds `refs`, shared by all processes of this machine that read them.

    A store on this very disk has no cache: its objects are read where they lie.
    """

    def __init__(self, store: Store, refs: Sequence[ObjectRef]) -> None:
        self._store = store
        self._sizes = {ref.sha256: ref.bytes for ref in refs}
        self._coming: dict[str, int] = {}
        self._making_room = threading.Lock()

    @contextmanager
    def holding(self, ref: ObjectRef) -> Iterator[Path]:
        """The verified file of an object, there for as long as the block lasts: who opens it then can read on.

        Of several processes one fetches it. Raises StoreError, and DiskFullError when nothing more can be removed.
        """
        cache = self._store.cache
        if cache is None:
            yield self._store.path_of(ref)
            return
        with self._locked(cache, ref.sha256, wait=True):
            if not cache.has(ref.sha256):
                self._make_room(cache, ref)
            try:
                path = self._fetched(cache, ref)
            finally:
                self._coming.pop(ref.sha256, None)
            os.utime(path)  # the youngest is removed last
            yield path

    def _fetched(self, cache: Store, ref: ObjectRef) -> Path:
        try:
            return self._store.path_of(ref)
        except DiskFullError:
            self._remove(cache, 0)
        try:
            return self._store.path_of(ref)
        except DiskFullError as error:
            raise DiskFullError(
                f"{error}; or name a disk with more room for encoded shards by store.local, or set a smaller "
                "store.cache_gib"
            ) from error

    def _make_room(self, cache: Store, ref: ObjectRef) -> None:
        most = self._store.cache_bytes or 0
        with self._making_room:
            self._coming[ref.sha256] = ref.bytes
            self._remove(cache, max(0, most - sum(self._coming.values())))

    def _remove(self, cache: Store, most: int) -> None:
        """Remove objects until those that are left have at most so many bytes; one in whose place somebody is stays."""
        held = sorted((e for e in cache.objects() if e.name in self._sizes), key=lambda e: -e.age_s)
        total = sum(entry.bytes for entry in held)
        for entry in held:
            if total <= most:
                return
            with self._locked(cache, entry.name, wait=False) as mine:
                if mine:
                    cache.delete_object(entry.name)
                    total -= entry.bytes

    @contextmanager
    def _locked(self, cache: Store, sha256: str, *, wait: bool) -> Iterator[bool]:
        """Yields False when somebody else holds the lock of this name, and is not waited for."""
        folder = cache.work_folder("shard_locks")
        with (folder / sha256[:3]).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
