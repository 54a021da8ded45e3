"""The stage cache: a finished stage is found again by what it was made from.

Key = SHA-256 of stage, stage version, the stage's own config, the identities of its inputs, the seed and whatever the
stage adds (for latency_profile the machine). The finished record is a document under `stages/<stage>/<key>`.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from artifacts_schema.base import Record, content_hash
from artifacts_schema.readers import read_record
from steps.errors import DamagedError
from steps.store.base import Store
from steps.store.layout import check_layout
from steps.store.leases import lease

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
        check_layout(store)  # after the lease, for which a migration looks after it has marked the layout
        if enabled and (found := lookup(store, key)) is not None:
            return CacheResult(found, True, key.sha256, "hit: another run finished it while this one waited")
        record = run()
        store.put_document(key.document, record.to_json())
    return CacheResult(record, False, key.sha256, reason)


def lookup(store: Store, key: StageKey) -> Record | None:
    """The cached record, or None. A record whose objects are gone from the store counts as a miss."""
    try:
        text = store.get_document(key.document)
    except DamagedError as error:
        logger.warning("stage=%s is cached but its record is damaged; running it again: %s", key.stage, error)
        return None
    if text is None:
        return None
    record = read_record(text)
    missing = [sha for sha in object_hashes(json.loads(text)) if not store.has(sha)]
    if missing:
        logger.warning("stage=%s is cached but object %s is gone; running it again", key.stage, missing[0])
        return None
    return record


def object_hashes(value: Any) -> Iterator[str]:
    """Every object reference inside a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get("sha256"), str) and str(value.get("uri", "")).startswith("sha256:"):
            yield value["sha256"]
        for item in value.values():
            yield from object_hashes(item)
    elif isinstance(value, list):
        for item in value:
            yield from object_hashes(item)
