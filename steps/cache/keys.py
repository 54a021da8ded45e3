"""The stage cache: a finished stage is found again by what it was made from.

Key = SHA-256 of stage, stage version, what the stage reads of the config, the identities of its inputs, the seed, the
label of a foreach task and whatever the stage adds (for latency_profile the machine). The finished record is a document
under `stages/<stage>/<key>`, with the parts of its key beside it, so that a later miss can name what has changed.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from artifacts_schema.base import NewerRecord, Record, content_hash
from artifacts_schema.readers import read_record
from steps.cache.leases import lease
from steps.cache.misses import PARTS, explain_miss
from steps.files.errors import DamagedError, StoreError
from steps.store.base import Store

logger = logging.getLogger(__name__)
RecordType = TypeVar("RecordType", bound=Record)


@dataclass(frozen=True)
class StageKey:
    """What identifies one execution of a stage."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int
    extra: Mapping[str, Any]
    label: str = ""

    @property
    def parts(self) -> dict[str, Any]:
        """Everything the key is made of, JSON-able."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """The cache key."""
        return content_hash(self.parts)

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
    reason = "bypassed by store.cache = false"
    if enabled:
        found, unusable = lookup(store, key)
        if found is not None:
            logger.info("stage=%s key=%s cache=hit", key.stage, key.sha256[:12])
            return CacheResult(found, True, key.sha256, "hit: same stage version, config, inputs and seed")
        reason = f"miss: {unusable or explain_miss(store, key.parts)}"
    logger.info("stage=%s key=%s cache=%s", key.stage, key.sha256[:12], reason)
    with lease(store, key.document):
        if enabled and (found := lookup(store, key)[0]) is not None:
            return CacheResult(found, True, key.sha256, "hit: another run finished it while this one waited")
        before = _entry(store, key)
        record = run()
        entry = json.loads(record.to_json()) | {PARTS: key.parts}
        # A run that took this one for dead may have finished before it: its entry stays.
        if not store.swap_document(key.document, before, json.dumps(entry, indent=2, allow_nan=False)):
            logger.warning(
                "stage=%s key=%s was finished by another run meanwhile", key.stage, key.sha256[:12]
            )
            if enabled and (found := lookup(store, key)[0]) is not None:
                return CacheResult(found, True, key.sha256, "hit: another run finished it meanwhile")
    return CacheResult(record, False, key.sha256, reason)


def _entry(store: Store, key: StageKey) -> str | None:
    """What lies under the key; None also when it is damaged."""
    try:
        return store.get_document(key.document)
    except DamagedError:
        return None


def lookup(store: Store, key: StageKey) -> tuple[Record | None, str]:
    """The cached record, or None and what is wrong with it; nothing is wrong with one that was never there.

    A damaged record, or one whose objects are gone from the store, counts as a miss. Raises StoreError for a record of
    a newer version than this program reads: it is somebody's work, not damage.
    """
    try:
        text = store.get_document(key.document)
        if text is None:
            return None, ""
        entry = json.loads(text)
        if isinstance(entry, dict):
            entry.pop(PARTS, None)
        record = read_record(json.dumps(entry))
        missing = [sha for sha, size in object_refs(entry) if not store.has(sha, size)]
    except NewerRecord as error:
        raise StoreError(f"cannot use {key.document} in the store {store.root}: {error}") from error
    except (DamagedError, ValueError) as error:
        why = " ".join(str(error).split())
        logger.warning("stage=%s is cached but its record is damaged; running it again: %s", key.stage, why)
        return None, f"its record is damaged ({why})"
    if missing:
        logger.warning(
            "stage=%s is cached but object %s is gone or cut short; running it again", key.stage, missing[0]
        )
        return None, f"object {missing[0]} of its record is gone or cut short"
    return record, ""


def object_refs(value: Any) -> Iterator[tuple[str, int | None]]:
    """Hash and size of every object reference inside a JSON value; None for a size that it does not say."""
    if isinstance(value, dict):
        if isinstance(value.get("sha256"), str) and str(value.get("uri", "")).startswith("sha256:"):
            yield value["sha256"], value.get("bytes")
        for item in value.values():
            yield from object_refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from object_refs(item)
