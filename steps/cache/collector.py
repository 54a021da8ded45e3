"""Finds in a store what no kept run refers to, and removes it. docs/adr/0014-garbage.md"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from steps.cache.keys import object_hashes
from steps.cache.leases import idle_lease, lease, remove_lease, survey
from steps.cache.notes import Uses, is_marked, read_documents, read_uses
from steps.store.base import Entry, Store, parse_document
from steps.store.layout import check_layout

logger = logging.getLogger(__name__)
HOUR_S = 3600.0
_ENTRIES = ("stages", "records", "probes", "latent_pools")
_POOL_READER = "stages/decoder_distillation/"  # nobody else reads latent pools, and only until it is finished


@dataclass(frozen=True)
class Retention:
    """Which runs stay: the newest `keep_last` (None: all) without those named in `drop`; and for how long everything
    stays whatever it is.
    """

    keep_last: int | None = None
    drop: Collection[str] = ()
    min_age_s: float = 24 * HOUR_S


@dataclass
class Garbage:
    """What no kept run refers to."""

    runs: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    work: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    kept_runs: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the objects and work folders together."""
        return sum(self.objects.values()) + sum(self.work.values())


class Collector:
    """Finds garbage in a store, and removes it."""

    def __init__(self, store: Store, retention: Retention) -> None:
        self.store, self.retention = store, retention
        self.min_age_s = retention.min_age_s
        self.working: set[str] = set()  # keys with a living lease, such as stages/<stage>/<key>
        self.idle: dict[str, str] = {}  # keys with a lease that nobody holds, and its text

    def find(self) -> Garbage:
        """Everything that could be removed now. Removes nothing."""
        self.look_at_leases()
        uses = read_uses(self.store)
        kept, dropped = self._choose(uses)
        used = _documents(uses, kept)
        garbage = Garbage(runs=dropped, kept_runs=kept)
        garbage.documents = self._dead_documents(used, set(dropped))
        live = self._live_hashes(without=set(garbage.documents))
        garbage.objects = {
            entry.name: entry.bytes
            for entry in self.store.objects()
            if entry.name not in live and entry.age_s >= self.min_age_s
        }
        garbage.work = self.dead_work(self.store.work(), used)
        return garbage

    def remove(self) -> Garbage:
        """Find garbage and remove it; returns what was removed.

        Under a lease: neither another collector nor a migration, which moves documents, works on the store meanwhile.
        """
        with lease(self.store, "collection"):
            check_layout(self.store)
            return self._remove()

    def _remove(self) -> Garbage:
        """The order is that of docs/adr/0014-garbage.md; each step looks again at what may have changed since `find`."""
        found = self.find()
        kinds: dict[str, list[str]] = defaultdict(list)
        for key in found.documents:
            kinds[key.partition("/")[0]].append(key)
        removed = self._remove_entries([key for kind in _ENTRIES for key in kinds[kind]])
        # A run that noted its use after the search may just have read what was removed here: it comes back.
        uses = read_uses(self.store)
        kept, dropped = self._choose(uses)
        for key in removed.keys() & _documents(uses, kept):
            self.store.swap_document(key, None, removed.pop(key))
            logger.info("%s is in use again and stays", key)
        # Notes go last: somebody may have begun to resume a run that was to go.
        notes = [key for key in kinds["runs"] + kinds["reports"] if key.split("/")[1] in dropped]
        for key in notes:
            self.store.delete_document(key)
        live = self._live_hashes()
        objects = {
            name: size
            for name, size in found.objects.items()
            if name not in live and self.store.delete_object(name, min_age_s=self.min_age_s)
        }
        leases = self._remove_leases(kinds["leases"])
        work = self.remove_work(found.work, self.store.delete_work)
        runs = [run for run in found.runs if run in dropped]
        return Garbage(runs, sorted([*removed, *notes, *leases]), work, objects, kept)

    def _remove_entries(self, keys: Iterable[str]) -> dict[str, str]:
        """Remove these documents; returns what they held."""
        removed = {}
        for key in keys:
            text = self.store.get_document(key)
            if text is not None:
                self.store.delete_document(key)
                removed[key] = text
        return removed

    def _remove_leases(self, documents: Iterable[str]) -> list[str]:
        """Remove leases, unless somebody has come since they were looked at."""
        keys = (document.removeprefix("leases/") for document in documents)
        gone = [key for key in keys if remove_lease(self.store, key, self.idle[key])]
        for key in gone:
            del self.idle[key]
        return [f"leases/{key}" for key in gone]

    def remove_work(self, found: Mapping[str, int], remove: Callable[[str], object]) -> dict[str, int]:
        """Have work folders removed, each under its stage's lease; returns those that are gone."""
        finished = set(self.store.list_documents("stages/"))
        gone = {}
        for name, size in found.items():
            key = f"stages/{name}"
            with idle_lease(self.store, key, self.idle.get(key)) as held:
                # A run notes its use before it takes the lease, which it cannot do now: no note, nobody goes on from it.
                if held and (key in finished or not is_marked(self.store, key)):
                    remove(name)
                    gone[name] = size
        return gone

    def look_at_leases(self) -> None:
        """Which keys are being worked on, and since when: nothing written since then may go."""
        held, self.idle = survey(self.store)
        self.working = set(held)
        for key, text in held.items():
            if key.startswith("stages/"):
                claim = parse_document(f"leases/{key}", text)
                since = datetime.fromisoformat(claim.get("since", "1970-01-01T00:00:00+00:00"))
                worked_s = (datetime.now(UTC) - since).total_seconds()
                self.min_age_s = max(self.min_age_s, worked_s + HOUR_S)

    def _choose(self, uses: Mapping[str, Uses]) -> tuple[list[str], list[str]]:
        """Run ids that stay and that go. An origin stays with the run that resumed it."""
        newest = sorted(uses, key=lambda run: (uses[run].age_s, run))[: self.retention.keep_last]
        kept = {run for run in newest if run not in set(self.retention.drop)}
        kept |= {run for run, found in uses.items() if found.age_s < self.min_age_s}
        pending = list(kept)
        while pending:
            found = uses.get(pending.pop(), Uses())
            pending += found.origins - kept
            kept |= found.origins
        return sorted(kept), sorted(set(uses) - kept)

    def _dead_documents(self, used: Collection[str], dropped: Collection[str]) -> list[str]:
        """Old documents of known kinds that no kept run refers to."""
        dead = []
        finished = set(self.store.list_documents(_POOL_READER))
        pools_stay = any(key.startswith(_POOL_READER) for key in {*used} - finished | self.working)
        for entry in self.store.documents(""):
            kind, _, rest = entry.name.partition("/")
            if entry.name in used or entry.age_s < self.min_age_s or entry.name in self.working:
                continue
            if kind in ("runs", "reports"):
                unused = rest.split("/")[0] in dropped
            elif kind == "leases":
                unused = rest in self.idle
            elif kind == "latent_pools":
                unused = not pools_stay
            else:
                unused = kind in _ENTRIES
            if unused:
                dead.append(entry.name)
        return sorted(dead)

    def _live_hashes(self, without: Collection[str] = ()) -> set[str]:
        """Every object that a remaining document names.

        Notes are read last: when an entry is overwritten meanwhile, those who use the old one have noted its objects.
        """
        live: set[str] = set()
        for notes in (False, True):
            for entry, text in read_documents(self.store, "runs/" if notes else ""):
                if entry.name not in without and entry.name.startswith("runs/") == notes:
                    live |= set(object_hashes(parse_document(entry.name, text, object)))
        return live

    def dead_work(self, entries: Iterable[Entry], used: Collection[str]) -> dict[str, int]:
        """Old work folders that nobody goes on from: the stage is finished, or no kept run refers to it."""
        finished = set(self.store.list_documents("stages/"))
        return {
            entry.name: entry.bytes
            for entry in entries
            if (f"stages/{entry.name}" in finished or f"stages/{entry.name}" not in used)
            and f"stages/{entry.name}" not in self.working
            and entry.age_s >= self.min_age_s
        }


def _documents(uses: Mapping[str, Uses], runs: Iterable[str]) -> set[str]:
    """Documents that these runs refer to."""
    return {key for run in runs if run in uses for key in uses[run].documents}
