"""The stage cache: a finished stage is found again by what it was made from.

Key = SHA-256 of stage, stage version, the stage's own config, the identities of its inputs, the seed and whatever the
stage adds (for latency_profile the machine). The finished record is a document under `stages/<stage>/<key>`.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from artifacts_schema.base import Record, content_hash
from artifacts_schema.readers import read_record
from steps.errors import StoreError
from steps.store.base import Store

logger = logging.getLogger(__name__)
RecordType = TypeVar("RecordType", bound=Record)


@dataclass(frozen=True)
class StageKey:
    """What identifies one execution of a stage."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Sequence[str]
    seed: int
    extra: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """The cache key."""
        return content_hash(
            {
                "stage": self.stage,
                "version": self.version,
                "config": dict(self.config),
                "inputs": list(self.inputs),
                "seed": self.seed,
                "extra": dict(self.extra),
            }
        )

    @property
    def document(self) -> str:
        """Where the finished record lies."""
        return f"stages/{self.stage}/{self.sha256}"


@dataclass(frozen=True)
class CacheResult:
    """A stage's record, and whether it came from the cache."""

    record: Any
    hit: bool
    key: str
    reason: str


def cached_stage(
    store: Store,
    key: StageKey,
    run: Callable[[], RecordType],
    *,
    enabled: bool = True,
) -> CacheResult:
    """The record of `key`: read from the cache when it is there and its objects are, else made by `run`.

    A lease keeps two runs from working on one key at once: the second waits for the first's record.
    """
    if enabled and (found := lookup(store, key)) is not None:
        logger.info("stage=%s key=%s cache=hit", key.stage, key.sha256[:12])
        return CacheResult(found, True, key.sha256, "hit: same stage version, config, inputs and seed")
    reason = "miss: no finished stage has this key" if enabled else "bypassed by store.cache = false"
    logger.info("stage=%s key=%s cache=%s", key.stage, key.sha256[:12], reason)
    with lease(store, key.document):
        if enabled and (found := lookup(store, key)) is not None:
            return CacheResult(found, True, key.sha256, "hit: another run finished it while this one waited")
        record = run()
        store.put_document(key.document, record.to_json())
    return CacheResult(record, False, key.sha256, reason)


def lookup(store: Store, key: StageKey) -> Record | None:
    """The cached record, or None. A record whose objects are gone from the store counts as a miss."""
    text = store.get_document(key.document)
    if text is None:
        return None
    record = read_record(text)
    missing = [sha for sha in _hashes(json.loads(text)) if not store.has(sha)]
    if missing:
        logger.warning("stage=%s is cached but object %s is gone; running it again", key.stage, missing[0])
        return None
    return record


def _hashes(value: Any) -> Iterator[str]:
    """Every object reference inside a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get("sha256"), str) and str(value.get("uri", "")).startswith("sha256:"):
            yield value["sha256"]
        for item in value.values():
            yield from _hashes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _hashes(item)


LEASE_S = 120.0  # a holder renews at a quarter of this; a dead one is taken over after it
_WAIT_S = 2.0


@contextmanager
def lease(store: Store, key: str, *, wait_s: float = 6 * 3600.0) -> Iterator[None]:
    """Hold the only right to work on `key`. Waits for another holder; raises StoreError after `wait_s` seconds."""
    document = f"leases/{key}"
    owner = uuid.uuid4().hex
    deadline = time.monotonic() + wait_s
    announced = False
    while not _acquire(store, document, owner):
        if not announced:
            logger.warning("waiting for %s, which works on %s", _holder(store, document), key)
            announced = True
        if time.monotonic() > deadline:
            raise StoreError(f"{key} is still held after {wait_s:.0f} s by {_holder(store, document)}")
        time.sleep(_WAIT_S)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(LEASE_S / 4):
            _write_lease(store, document, owner)

    thread = threading.Thread(target=renew, daemon=True, name=f"lease {key}")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        store.put_document(document, json.dumps({"owner": owner, "expires": 0.0}))


def _acquire(store: Store, document: str, owner: str) -> bool:
    text = store.get_document(document)
    held = json.loads(text) if text else {"expires": 0.0}
    if held["expires"] > time.time() and not _is_dead(held):
        return False
    _write_lease(store, document, owner)
    # Two that saw the same free lease both write; whoever is read back afterwards has won.
    time.sleep(0.05)
    return bool(json.loads(store.get_document(document) or "{}").get("owner") == owner)


def _write_lease(store: Store, document: str, owner: str) -> None:
    payload = {
        "owner": owner,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "expires": time.time() + LEASE_S,
    }
    store.put_document(document, json.dumps(payload))


def _is_dead(held: Mapping[str, Any]) -> bool:
    """A holder on this very host whose process is gone need not be waited for."""
    if held.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(held["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _holder(store: Store, document: str) -> str:
    held = json.loads(store.get_document(document) or "{}")
    return f"host {held.get('host')} pid {held.get('pid')}"
