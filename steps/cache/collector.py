"""Finds in a store what no kept run refers to, and removes it while nobody works. docs/adr/0014-garbage.md"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from artifacts_schema.champion import ChampionHistory
from steps.cache.keys import object_refs
from steps.cache.leases import COLLECTION, alone
from steps.cache.notes import Uses, read_documents, uses_of
from steps.registry.champion import champion_history
from steps.store.base import Store, parse_document

HOUR_S = 3600.0
_ENTRIES = ("stages", "records", "probes")
_POOL_READER = "stages/decoder_distillation/"  # nobody else reads latent pools, and only until it is finished
_SHARDS, _SHARD_READER = (
    "encoded_shards",
    "stages/start/",
)  # the same; what is in a kept run's data stays besides


@dataclass(frozen=True)
class Retention:
    """Which runs stay: the newest `keep_last` (None: all) and every champion, without those named in `drop`; and for how
    long everything stays whatever it is. The present champion always stays.
    """

    keep_last: int | None = None
    drop: Collection[str] = ()
    min_age_s: float = 24 * HOUR_S


@dataclass
class Garbage:
    """What no kept run refers to: ids of runs, keys of documents, bytes by work folder and by object."""

    runs: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    work: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    kept_runs: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the objects and work folders together."""
        return sum(self.objects.values()) + sum(self.work.values())


def find_garbage(store: Store, retention: Retention) -> Garbage:
    """Everything that could be removed now. Raises DamagedError for a document that does not say what it refers to."""
    documents = read_documents(store)
    uses = uses_of(documents)
    kept = _kept(uses, retention, champion_history(store))
    used = {key for run in kept for key in uses[run].documents}
    garbage = Garbage(runs=sorted(uses.keys() - kept), kept_runs=sorted(kept))
    finished = {entry.name for entry in documents if entry.name.startswith("stages/")}
    pools_stay = any(key.startswith(_POOL_READER) for key in used - finished)
    shards_stay = any(key.startswith(_SHARD_READER) for key in used - finished)
    shards: dict[str, set[str]] = {}
    live: set[str] = set()
    for entry, text in documents.items():
        kind, name = entry.name.split("/", 1) if "/" in entry.name else ("", entry.name)
        unused = (
            (kind in _ENTRIES and entry.name not in used)
            or (kind in ("runs", "reports") and name.split("/")[0] not in kept)
            or (kind == "latent_pools" and not pools_stay)
        )
        refs = {sha256 for sha256, _ in object_refs(parse_document(entry.name, text, object))}
        if kind == _SHARDS and not shards_stay and entry.age_s >= retention.min_age_s:
            shards[entry.name] = refs
        elif unused and entry.age_s >= retention.min_age_s:
            garbage.documents.append(entry.name)
        else:
            live |= refs
    garbage.documents += [name for name, refs in shards.items() if not refs & live]
    live |= {sha256 for refs in shards.values() if refs & live for sha256 in refs}
    garbage.documents += [
        e.name for e in store.documents("leases/") if e.name != COLLECTION and e.age_s >= retention.min_age_s
    ]
    garbage.objects = {
        e.name: e.bytes for e in store.objects() if e.name not in live and e.age_s >= retention.min_age_s
    }
    garbage.work = _dead_work(store, retention, finished, used)
    return garbage


def find_in_cache(store: Store, retention: Retention) -> Garbage:
    """What this machine's cache of a store holds that can be fetched again, and work folders that nobody goes on from.

    Every run counts as kept: its checkpoints may be on this disk only.
    """
    if store.cache is None:
        raise ValueError("the store has no cache")
    documents = read_documents(store)
    uses = uses_of(documents)
    garbage = Garbage(kept_runs=sorted(uses))
    garbage.objects = {e.name: e.bytes for e in store.cache.objects() if e.age_s >= retention.min_age_s}
    used = {key for found in uses.values() for key in found.documents}
    garbage.work = _dead_work(store.cache, retention, {entry.name for entry in documents}, used)
    return garbage


def remove(store: Store, find: Callable[[], Garbage]) -> Garbage:
    """Find garbage and remove it from `store`; returns what was removed. Raises StoreError while anybody works there.

    Objects go after the documents that name them, so that what is cut off here leaves no document without its objects.
    """
    with alone(store) as held:
        found = find()
        for names, delete in (
            (found.documents, store.delete_document),
            (found.objects, store.delete_object),
            (found.work, store.delete_work),
        ):
            for name in names:
                held.require()
                delete(name)
    return found


def _kept(uses: Mapping[str, Uses], retention: Retention, history: ChampionHistory) -> set[str]:
    """Run ids that stay. An origin stays with the run that resumed it, a former champion until it is dropped by name,
    the champion in any case.
    """
    newest = sorted(uses, key=lambda run: (uses[run].age_s, run))[: retention.keep_last]
    newest += [event.run for event in history.events]
    pending = [run for run in newest if run not in retention.drop or run == history.champion]
    pending += [run for run, found in uses.items() if found.age_s < retention.min_age_s]
    kept: set[str] = set()
    while pending:
        run = pending.pop()
        if run in uses and run not in kept:
            kept.add(run)
            pending += uses[run].origins
    return kept


def _dead_work(
    store: Store, retention: Retention, finished: Collection[str], used: Collection[str]
) -> dict[str, int]:
    """Old work folders that nobody goes on from: the stage is finished, or no kept run refers to it."""
    return {
        entry.name: entry.bytes
        for entry in store.work()
        if (f"stages/{entry.name}" in finished or f"stages/{entry.name}" not in used)
        and entry.age_s >= retention.min_age_s
    }
