"""Where a training keeps its checkpoints: a local folder and, with a store on S3, a mirror of it.

A checkpoint counts when it lies complete in the local folder. Then a thread sends it to the mirror while training goes
on; when the next one is ready earlier, the newest waits and the ones between are left out. In the mirror the tensors
carry their hash in their name and `state.json` is sent last, so that a sending that was cut off, or two machines that
send at once, never make a checkpoint of parts that do not belong together.
"""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

from steps.files.disk import no_space_is_said
from steps.files.errors import CheckpointError, DamagedError, StoreError
from steps.files.sealed import read_sealed
from steps.store.base import Mirror
from steps.training.checkpoint import (
    KEEP,
    STATE,
    TENSORS,
    Checkpoint,
    checkpoint_folders,
    put_aside,
    read_checkpoint,
    remove_hidden,
    save_checkpoint,
)

logger = logging.getLogger(__name__)
_LOOK_S = 0.5  # how often `close` looks whether there is a hurry


class CheckpointFolder:
    """Saves and finds the checkpoints of one training. Use as a context: the end waits for what is being sent.

    After `hurry` (SIGTERM) it waits no longer than `grace_s` seconds from that moment.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None, *, grace_s: float = 10.0) -> None:
        self.folder, self._mirror = folder, mirror
        self._grace_s, self._deadline = grace_s, float("inf")
        self._wake = threading.Condition()
        self._next: Path | None = None
        self._passed_over: set[str] = set()  # damaged, here or in the mirror: not among the two that are kept
        self._sending = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "CheckpointFolder":
        remove_hidden(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it to disk, remove all but the last two, and have it sent. Raises DiskFullError."""
        path = save_checkpoint(self.folder, checkpoint)
        if self._mirror is None:
            return
        with self._wake:
            self._next = path
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True, name="checkpoints")
                self._thread.start()
            self._wake.notify_all()

    def hurry(self) -> None:
        """The machine goes away soon: from now on `close` waits for the grace period only. Safe in a signal handler."""
        self._deadline = min(self._deadline, time.monotonic() + self._grace_s)

    def close(self) -> None:
        """Wait until the newest checkpoint is sent, or could not be; after `hurry`, until the grace period is over."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        thread, self._thread = self._thread, None
        while thread is not None and thread.is_alive():
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                logger.warning(
                    "the newest checkpoint is in %s but was not sent to the store within %.0f s of SIGTERM; another "
                    "machine goes on from the one before", self.folder, self._grace_s,
                )  # fmt: skip
                return
            thread.join(min(remaining, _LOOK_S))
        self._closed = False

    def load_latest(self) -> Checkpoint | None:
        """The newest readable checkpoint of folder and mirror, or None when there is none at all.

        A damaged one is passed over with a warning: first to its copy in the mirror, then to the one before. Raises
        CheckpointError when there are checkpoints but all are damaged: starting over silently would throw work away. A
        store or disk that does not answer damages nothing: its StoreError or OSError goes on to the caller.
        """
        local = {folder.name for folder in checkpoint_folders(self.folder)}
        remote = self._remote_names() if self._mirror is not None else set()
        for name in sorted(local | remote, reverse=True):
            for is_there, fetch in ((name in local, False), (name in remote, True)):
                if is_there and (found := self._read(name, fetch=fetch)) is not None:
                    # Only now: were they gone while none can be read, the next attempt would start over.
                    put_aside([self.folder / damaged for damaged in self._passed_over & local])
                    return found
            self._passed_over.add(name)
        if local | remote:
            raise CheckpointError(
                f"none of the {len(local | remote)} checkpoints in {self.folder} can be read; "
                "remove them to start over"
            )
        return None

    def _read(self, name: str, *, fetch: bool) -> Checkpoint | None:
        """One checkpoint, or None with a warning when it is damaged."""
        try:
            if fetch:
                self._fetch(name)
            return read_checkpoint(self.folder / name)
        except (DamagedError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            place = "mirror" if fetch else "disk"
            logger.warning(
                "checkpoint=%s on %s is damaged (%s); trying the next", self.folder / name, place, error
            )
            return None

    def _remote_names(self) -> set[str]:
        """Checkpoints of the mirror that are complete."""
        assert self._mirror is not None  # noqa: S101 - only called with one
        names = (Path(name) for name in self._mirror.names())
        return {name.parent.as_posix() for name in names if name.name == STATE}

    def _fetch(self, name: str) -> None:
        """Bring one checkpoint of the mirror to disk, under its own name only once it is complete."""
        assert self._mirror is not None  # noqa: S101 - only called with one
        partial = self.folder / f".fetched-{name}"
        shutil.rmtree(partial, ignore_errors=True)
        with no_space_is_said("a checkpoint", self.folder):
            try:
                partial.mkdir(parents=True)
                self._mirror.fetch(f"{name}/{STATE}", partial / STATE)
                tensors = f"{name}/{read_sealed(partial / STATE)['sha256']}"
                if tensors not in self._mirror.names():  # a fetch would not tell that from a store that fails
                    raise DamagedError(f"{tensors} is missing")
                self._mirror.fetch(tensors, partial / TENSORS)
                read_checkpoint(partial)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                partial.rename(self.folder / name)
                logger.info("checkpoint=%s fetched from the store", name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _send_all(self) -> None:
        """The thread: send the newest that is waiting, until closed."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._closed)
                path, self._next = self._next, None
            if path is None:
                return
            try:
                self._send(path)
            except (OSError, StoreError, ValueError, KeyError) as error:
                # The one on disk is safe; the next is sent in its turn.
                logger.warning("checkpoint=%s could not be sent to the store: %s", path.name, error)

    def _send(self, path: Path) -> None:
        """Send one checkpoint, its state last, then remove all but the last two."""
        assert self._mirror is not None  # noqa: S101 - only called with one
        held = self.folder / f".sending-{path.name}"
        try:
            # Two newer ones may take its place on disk before a slow server has it: it must not vanish meanwhile.
            _link(path, held)
            sha256 = read_sealed(held / STATE)["sha256"]
            self._mirror.send(f"{path.name}/{sha256}", held / TENSORS)
            self._mirror.send(f"{path.name}/{STATE}", held / STATE)
        finally:
            shutil.rmtree(held, ignore_errors=True)
        self._passed_over.discard(path.name)
        names = self._mirror.names()
        complete = {name.rpartition("/")[0] for name in names if name.endswith(f"/{STATE}")}
        kept = set(sorted(complete - self._passed_over)[-KEEP:])
        # State first: what is left of a removal that was cut off is no checkpoint.
        for name in sorted(names, key=lambda name: not name.endswith(f"/{STATE}")):
            if name.partition("/")[0] not in kept and name.partition("/")[0] < max(kept):
                self._mirror.remove(name)


def _link(source: Path, target: Path) -> None:
    """The same files under another name; copies where the file system has no links."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except PermissionError:
            shutil.copyfile(path, target / path.name)
