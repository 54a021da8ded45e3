"""Leases: the only right to work on a key, and the sign that a store is in use, for as long as the holder is alive.

A holder renews its document again and again. Nobody compares clocks: who waits takes over once the document has not
changed for `LEASE_S` seconds of its own monotonic clock, or at once when the holder was a process of this machine of
which the system says that there is none. Every change is a swap, so that of several that take over one gets it, and a
holder that was taken for dead (suspended, cut off) notices. A lease whose document is damaged is one that nobody can
read: its holder writes it anew at its next renewal. docs/adr/0011-leases.md

Everything that works holds `leases/use/...` (`in_use`); the collector holds `leases/collection` (`alone`). Each writes
its own document first and then looks for the other's: one of the two sees the other. docs/adr/0014-garbage.md
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from steps.files.errors import DamagedError, StoreError
from steps.store.base import Store

logger = logging.getLogger(__name__)
LEASE_S = 120.0  # a holder renews at a quarter of this; one that stays silent for so long is taken for dead
_WAIT_S = 1.0
_USE = "leases/use/"
COLLECTION = "leases/collection"
_DAMAGED = "damaged"  # stands for the text of a document that cannot be read
now, pause = time.monotonic, time.sleep  # a test puts a clock of its own in their place


@contextmanager
def lease(store: Store, key: str) -> Iterator[None]:
    """Hold the only right to work on `key`. Waits for as long as another holder renews."""
    held = Held(store, f"leases/{key}")
    while not held.take(_wait_until_free(store, f"leases/{key}", f"works on {key}")):
        pass
    with held.kept():
        yield


def is_held(store: Store, key: str) -> bool:
    """True when somebody seems to work on `key`: a hint, by which several workers find different work."""
    return not is_free(_read(store, f"leases/{key}"))


@contextmanager
def in_use(store: Store, work: str) -> Iterator[None]:
    """Keep the collector away from the store and from this machine's cache of it; waits while one is at work.

    `work` tells people what is going on.
    """
    with ExitStack() as stack:
        for place in filter(None, (store, store.cache)):
            held = Held(place, f"{_USE}{uuid.uuid4().hex}", work)
            held.take(None)
            stack.enter_context(held.kept(remove=True))
            _wait_until_free(place, COLLECTION, f"collects in {place.root}")
        yield


@contextmanager
def alone(store: Store) -> Iterator["Held"]:
    """Have the store to oneself: who comes waits. Raises StoreError, naming them, when others work on it already.

    Call `require` of what it yields before each step that would harm somebody who took this process for dead.
    """
    held = Held(store, COLLECTION, "collection")
    seen = _read(store, COLLECTION)
    if _living(store, {COLLECTION: seen}) or not held.take(seen):
        raise StoreError(
            f"not now: {holder(_read(store, COLLECTION))} collects in the store {store.root}; try again later"
        )
    with held.kept():
        if working := _living(store, {key: _read(store, key) for key in store.list_documents(_USE)}):
            raise StoreError(
                f"not now: the store {store.root} is in use. These are working: {'; '.join(map(holder, working))}. "
                "Try again when they have ended"
            )
        yield held


def _living(store: Store, documents: Mapping[str, str | None]) -> list[str]:
    """Texts of leases that somebody holds. Unless the system knows a holder, they are watched: a living one renews."""
    silent = {key: text for key, text in documents.items() if text is not None and not is_free(text)}
    living = [text for text in silent.values() if _is_alive(_claim_of(text))]
    until = now() + LEASE_S
    while silent and not living and now() <= until:
        pause(_WAIT_S)
        for key, text in list(silent.items()):
            found = _read(store, key)
            if found != text:
                del silent[key]
                living += [found] if found is not None and not is_free(found) else []
    return living


def _wait_until_free(store: Store, document: str, what: str) -> str | None:
    """What the document reads when nobody holds it, or its holder has been silent for `LEASE_S`."""
    seen, since, announced = _read(store, document), now(), False
    while seen is not None and not is_free(seen) and now() - since <= LEASE_S:
        if not announced:
            logger.warning("waiting for %s, which %s", holder(seen), what)
            announced = True
        pause(_WAIT_S)
        text = _read(store, document)
        if text != seen:
            seen, since = text, now()
    return seen


class Held:
    """A lease in the hands of this process."""

    def __init__(self, store: Store, document: str, work: str = "") -> None:
        self._store, self._document = store, document
        self._claim = {
            "owner": uuid.uuid4().hex,
            "work": work,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._text: str | None = None
        self._beat = 0
        self._renewed = now()

    def take(self, seen: str | None) -> bool:
        """Swap the document that was seen for this holder's; False when somebody else was faster."""
        return self._write(seen, {**self._claim, "beat": self._beat})

    @contextmanager
    def kept(self, *, remove: bool = False) -> Iterator[None]:
        """Renew it within; at the end say that it is free, or remove a document that is this holder's alone."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep, args=(stop,), daemon=True, name=self._document)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._release(remove=remove)

    def require(self) -> None:
        """Raise StoreError when others may have taken this holder for dead: it has not renewed for half of `LEASE_S`."""
        if self._text is None or now() - self._renewed > LEASE_S / 2:
            raise StoreError(
                f"{self._document} was not renewed in time: this process was stopped. Start it again"
            )

    def _keep(self, stop: threading.Event) -> None:
        """Renew until `stop`, or until another took it. A store that fails for a while is tried again."""
        while not stop.wait(LEASE_S / 4):
            try:
                if not self.renew():
                    return
            except StoreError as error:
                logger.warning("%s could not be renewed and is tried again: %s", self._document, error)

    def renew(self) -> bool:
        """Renew once; False when another took it."""
        self._beat += 1
        claim = {**self._claim, "beat": self._beat}
        if self._write(self._text, claim):
            return True
        # Damaged, removed, or renewed by this holder and the answer was lost: still its own.
        seen = _read(self._store, self._document)
        mine = seen in (None, _DAMAGED) or _claim_of(seen).get("owner") == self._claim["owner"]
        if mine and self._write(seen, claim):
            return True
        logger.warning(
            "%s was taken over by %s: this process was silent for too long. Both do the same work",
            self._document, holder(_read(self._store, self._document)),
        )  # fmt: skip
        self._text = None
        return False

    def _release(self, *, remove: bool) -> None:
        if self._text is None:
            return
        try:
            if remove:
                self._store.delete_document(self._document)
            else:
                self._write(self._text, {"owner": self._claim["owner"], "released": True})
        except StoreError as error:
            logger.warning("%s could not be released; others wait %.0f s: %s", self._document, LEASE_S, error)

    def _write(self, seen: str | None, payload: Mapping[str, Any]) -> bool:
        new, began = json.dumps(payload), now()
        if self._store.swap_document(self._document, None if seen == _DAMAGED else seen, new):
            self._text, self._renewed = new, began
            return True
        return False


def _read(store: Store, document: str) -> str | None:
    """A lease's text; None when there is none, `_DAMAGED` when it cannot be read."""
    try:
        return store.get_document(document)
    except DamagedError:
        return _DAMAGED


def _claim_of(text: str | None) -> dict[str, Any]:
    """What a lease says; nothing when it is damaged or none."""
    return {} if text in (None, _DAMAGED) else dict(json.loads(str(text)))


def is_free(text: str | None) -> bool:
    """True when a lease document says that nobody holds it, or its holder was a process of this machine that is gone."""
    held = _claim_of(text)
    return text is None or bool(held.get("released")) or _is_dead(held)


def holder(text: str | None) -> str:
    """Who holds a lease, for people."""
    held = _claim_of(text)
    work = f"{held['work']} on " if held.get("work") else ""
    return f"{work}host {held.get('host')} pid {held.get('pid')}"


@cache
def machine() -> str | None:
    """Names this boot of this machine, and the process-id namespace: a process id means something in it only.

    None where the system does not tell: nothing can be proven of a process there.
    """
    if not Path("/proc/self").exists():
        return f"{socket.gethostname()}/{uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "/".join((socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return None


def _is_alive(held: Mapping[str, Any]) -> bool:
    """True for a process of this very machine of which the system says that it is there."""
    started = _started(held["pid"]) if machine() is not None and held.get("machine") == machine() else None
    return started is not None and started == held["started"]


def _is_dead(held: Mapping[str, Any]) -> bool:
    """True for a process of this very machine of which the system says that it is gone. Whatever keeps the system from
    saying so (rights, a hidden /proc, no handles left) proves nothing: its silence has to be waited for.
    """
    if machine() is None or held.get("machine") != machine():
        return False
    try:
        os.kill(held["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        pass
    # Its id may be in use again: the start tells the two apart.
    started = _started(held["pid"])
    return None not in (started, held["started"]) and started != held["started"]


def _started(pid: int) -> str | None:
    """When a process of this machine started, in a form that a change of the wall clock leaves alone; None: not known."""
    try:
        if Path("/proc/self").exists():
            # Field 22, in ticks since boot; the name before it may hold spaces and brackets.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return str(round(psutil.Process(pid).create_time()))
    except (OSError, psutil.Error):
        return None
