"""Leases: the only right to work on a key, for as long as its holder is alive.

A holder renews its document again and again. Nobody compares clocks: who waits takes over once the document has not
changed for `LEASE_S` seconds of its own monotonic clock, or at once when the holder was a process of this machine that
is gone. Every change is a swap, so that of several that take over one gets it, and a holder that was taken for dead
(suspended, cut off) notices. Whoever removes a lease takes it first. docs/adr/0011-leases.md
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from steps.files.errors import StoreError
from steps.store.base import Store, parse_document

logger = logging.getLogger(__name__)
LEASE_S = 120.0  # a holder renews at a quarter of this; one that stays silent for so long is taken for dead
_WAIT_S = 1.0
_SILENT_S = 10 * LEASE_S  # a lease this old is renewed no more, unless the clock was moved


@contextmanager
def lease(store: Store, key: str, *, wait_s: float = 6 * 3600.0) -> Iterator[None]:
    """Hold the only right to work on `key`. Waits for another holder; raises StoreError after `wait_s` seconds."""
    with _wait_for(store, f"leases/{key}", key, wait_s).kept():
        yield


@contextmanager
def idle_lease(store: Store, key: str, seen: str | None) -> Iterator[bool]:
    """Hold the lease of a key that nobody held when its document read `seen` (None: there was none).

    Yields False, and holds nothing, when the document has changed since: somebody has come.
    """
    held = _Held(store, f"leases/{key}")
    if held.take(seen):
        with held.kept():
            yield True
    else:
        yield False


def remove_lease(store: Store, key: str, seen: str) -> bool:
    """Remove the lease of a key that nobody held when its document read `seen`; False when it has changed since.

    It is taken first: who comes meanwhile waits, and finds no document.
    """
    held = _Held(store, f"leases/{key}")
    if not held.take(seen):
        return False
    store.delete_document(f"leases/{key}")
    return True


def _wait_for(store: Store, document: str, key: str, wait_s: float) -> "_Held":
    started = seen_since = time.monotonic()
    seen: str | None = None
    announced = False
    while True:
        text, now = _read(store, document), time.monotonic()
        if text != seen:
            seen, seen_since = text, now
        if is_free(text) or now - seen_since > LEASE_S:
            held = _Held(store, document)
            if held.take(text):
                return held
            continue
        if not announced:
            logger.warning("waiting for %s, which works on %s", holder(text), key)
            announced = True
        if now - started > wait_s:
            raise StoreError(f"{key} is still held after {wait_s:.0f} s by {holder(text)}")
        time.sleep(_WAIT_S)


class _Held:
    """A lease in the hands of this process."""

    def __init__(self, store: Store, document: str) -> None:
        self._store, self._document = store, document
        self._claim = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._text: str | None = None

    def take(self, seen: str | None) -> bool:
        """Swap the document that was seen for this holder's; False when somebody else was faster."""
        return self._write(seen, {**self._claim, "beat": 0})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew it within, and release it at the end."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), daemon=True, name=self._document)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._release()

    def _keep(self, stop: threading.Event) -> None:
        """Renew until `stop`, or until another took it. A store that fails for a while is tried again."""
        beat = 0
        while not stop.wait(LEASE_S / 4):
            beat += 1
            try:
                if not self._renew({**self._claim, "beat": beat}):
                    return
            except StoreError as error:
                logger.warning("%s could not be renewed and is tried again: %s", self._document, error)

    def _renew(self, claim: Mapping[str, Any]) -> bool:
        """Renew once; False when another took it."""
        if self._write(self._text, claim):
            return True
        # Removed by a collector that came late, or renewed by this holder and the answer was lost: still its own.
        seen = _read(self._store, self._document)
        mine = seen is None or json.loads(seen).get("owner") == self._claim["owner"]
        if mine and self._write(seen, claim):
            return True
        logger.warning(
            "%s was taken over by %s: this process was silent for too long. Both do the same work",
            self._document, holder(_read(self._store, self._document)),
        )  # fmt: skip
        self._text = None
        return False

    def _release(self) -> None:
        """Say that the key is free, unless another took it."""
        if self._text is None:
            return
        try:
            self._write(self._text, {"owner": self._claim["owner"], "released": True})
        except StoreError as error:
            logger.warning("%s could not be released; others wait %.0f s: %s", self._document, LEASE_S, error)

    def _write(self, old: str | None, payload: Mapping[str, Any]) -> bool:
        new = json.dumps(payload)
        if self._store.swap_document(self._document, old, new):
            self._text = new
            return True
        return False


def is_free(text: str | None) -> bool:
    """True when a lease document says that nobody holds it, or its holder was a process of this machine that is gone."""
    if text is None:
        return True
    held = json.loads(text)
    return bool(held.get("released")) or held.get("expires") == 0.0 or _is_dead(held)


def living(store: Store) -> dict[str, str]:
    """Leases that somebody holds: key to the document's text. Raises DamagedError naming a lease that is none."""
    return survey(store)[0]


def survey(store: Store) -> tuple[dict[str, str], dict[str, str]]:
    """Leases that somebody holds (see `living`), and leases that nobody does.

    Whatever ages say, one that looks dead for long is watched: a living holder renews within half of `LEASE_S`.
    """
    held: dict[str, str] = {}
    idle: dict[str, str] = {}
    silent: dict[str, str] = {}
    for entry in store.documents("leases/"):
        text = _read(store, entry.name)
        if text is not None:
            kind = idle if is_free(text) else held if entry.age_s < _SILENT_S else silent
            kind[entry.name.removeprefix("leases/")] = text
    if silent:
        logger.info("%d leases look dead; watching them for %.0f s", len(silent), LEASE_S / 2)
        time.sleep(LEASE_S / 2)
        for key, text in silent.items():
            (idle if store.get_document(f"leases/{key}") == text else held)[key] = text
    return held, idle


def _read(store: Store, document: str) -> str | None:
    """A lease's text, or None when there is none. Raises DamagedError naming it when it is no lease."""
    text = store.get_document(document)
    if text is not None:
        parse_document(document, text)
    return text


def holder(text: str | None) -> str:
    """Who holds a lease, for people."""
    held = json.loads(text or "{}")
    return f"host {held.get('host')} pid {held.get('pid')}"


@cache
def machine() -> str:
    """Names this boot of this machine, and the process-id namespace: a process id means something in it only."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return "/".join(
        (
            socket.gethostname(),
            boot.read_text().strip() if boot.is_file() else "",
            os.readlink(space) if space.is_symlink() else "",
        )
    )


def _is_dead(held: Mapping[str, Any]) -> bool:
    """True for a process of this very machine that is gone. Its id may be in use again: its start tells the two apart."""
    return held.get("machine") == machine() and _started(int(held["pid"])) != held["started"]


def _started(pid: int) -> str | None:
    """When a process of this machine started, in a form that a change of the wall clock leaves alone; None: no such."""
    if Path("/proc/self/stat").is_file():
        try:
            # Field 22, in ticks since boot; the name before it may hold spaces and brackets.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            return None
    try:
        return str(round(psutil.Process(pid).create_time()))
    except psutil.NoSuchProcess:
        return None
