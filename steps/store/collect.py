"""The garbage collector: removes from a store what no kept run refers to.

    python -m steps.store.collect                                    # only says what it would remove
    python -m steps.store.collect --keep-last 5 --delete             # removes all runs but the five newest
    python -m steps.store.collect --store s3://bucket/project --delete

A run refers to the stages it used (`runs/<run id>/...`, written before a stage asks the cache) and to the records in
its report. Every run is kept unless --keep-last or --drop says otherwise. Never removed: what is younger than
--min-age-hours, what was written since a stage began that is still being worked on, checkpoints of unfinished
stages, and documents of a kind this program does not know.
"""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from steps.errors import SnapFusionError
from steps.store import Store, open_store
from steps.store.cache import object_hashes
from steps.store.command_line import store_config, store_parser
from steps.store.layout import check_layout
from steps.store.leases import lease, living

logger = logging.getLogger(__name__)
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Retention:
    """Which runs stay: the newest `keep_last` (None: all) without those named in `drop`; and for how long everything
    stays whatever it is.
    """

    keep_last: int | None = None
    drop: Collection[str] = ()
    min_age_s: float = 24 * _HOUR_S


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

    def find(self) -> Garbage:
        """Everything that could be removed now. Removes nothing."""
        self._look_at_leases()
        garbage = Garbage()
        garbage.kept_runs, garbage.runs = self._runs()
        garbage.documents = self._dead_documents(garbage)
        live = self._live_hashes(without=set(garbage.documents))
        garbage.objects = {
            entry.name: entry.bytes
            for entry in self.store.objects()
            if entry.name not in live and entry.age_s >= self.min_age_s
        }
        garbage.work = self._dead_work()
        return garbage

    def remove(self) -> Garbage:
        """Find garbage and remove it; returns what was removed.

        Under a lease: neither another collector nor a migration, which moves documents, works on the store meanwhile.
        """
        with lease(self.store, "collection"):
            check_layout(self.store)
            return self._remove()

    def _remove(self) -> Garbage:
        garbage = self.find()
        texts = {key: self.store.get_document(key) for key in garbage.documents}
        for key in garbage.documents:
            self.store.delete_document(key)
        # A run that noted its use after the search may just have read what was removed here: it comes back.
        used = self._used_entries(self._runs()[0])
        for key in set(garbage.documents) & used:
            text = texts[key]
            if text is not None:
                self.store.put_document(key, text)
                logger.info("%s is in use again and stays", key)
        garbage.documents = [key for key in garbage.documents if key not in used]
        live = self._live_hashes()
        garbage.objects = {
            name: size
            for name, size in garbage.objects.items()
            if name not in live and self.store.delete_object(name, min_age_s=self.min_age_s)
        }
        self._look_at_leases()
        garbage.work = {
            key: size for key, size in garbage.work.items() if f"stages/{key}" not in self.working
        }
        for key in garbage.work:
            self.store.delete_work(key)
        return garbage

    def _look_at_leases(self) -> None:
        """Which keys are being worked on, and since when: nothing written since then may go."""
        held = living(self.store)
        self.working = set(held)
        for text in (text for key, text in held.items() if key.startswith("stages/")):
            since = datetime.fromisoformat(json.loads(text).get("since", "1970-01-01T00:00:00+00:00"))
            worked_s = (datetime.now(UTC) - since).total_seconds()
            self.min_age_s = max(self.min_age_s, worked_s + _HOUR_S)

    def _runs(self) -> tuple[list[str], list[str]]:
        """Run ids that stay and that go. A run's age is that of its youngest document; an origin stays with its run."""
        ages: dict[str, float] = {}
        origins: dict[str, set[str]] = defaultdict(set)
        for entry in self.store.documents("runs/"):
            run = entry.name.split("/")[1]
            ages[run] = min(entry.age_s, ages.get(run, entry.age_s))
            origin = json.loads(self.store.get_document(entry.name) or "{}").get("origin")
            if origin:
                origins[run].add(str(origin))
        for entry in self.store.documents("reports/"):
            run = entry.name.removeprefix("reports/")
            ages[run] = min(entry.age_s, ages.get(run, entry.age_s))
        newest = sorted(ages, key=lambda run: (ages[run], run))[: self.retention.keep_last]
        kept = {run for run in newest if run not in set(self.retention.drop)}
        kept |= {run for run, age in ages.items() if age < self.min_age_s}
        pending = list(kept)
        while pending:
            for origin in origins[pending.pop()] - kept:
                kept.add(origin)
                pending.append(origin)
        return sorted(kept), sorted(set(ages) - kept)

    def _used_entries(self, runs: Sequence[str]) -> set[str]:
        """Documents that these runs refer to."""
        used = set()
        for run in runs:
            for key in self.store.list_documents(f"runs/{run}/"):
                note = json.loads(self.store.get_document(key) or "{}")
                used |= {key, note.get("entry", "")}
            report = self.store.get_document(f"reports/{run}")
            if report is not None:
                identities = json.loads(report).get("inputs", {}).values()
                used |= {f"reports/{run}", *(f"records/{identity}" for identity in identities)}
        return used

    def _dead_documents(self, garbage: Garbage) -> list[str]:
        """Old documents of known kinds that no kept run refers to."""
        used = self._used_entries(garbage.kept_runs)
        dropped = set(garbage.runs)
        dead = []
        for entry in self.store.documents(""):
            kind, _, rest = entry.name.partition("/")
            if entry.name in used or entry.age_s < self.min_age_s or entry.name in self.working:
                continue
            if kind in ("runs", "reports"):
                unused = rest.split("/")[0] in dropped
            elif kind == "leases":
                unused = rest not in self.working
            else:
                unused = kind in ("stages", "records", "probes")
            if unused:
                dead.append(entry.name)
        return sorted(dead)

    def _live_hashes(self, without: Collection[str] = ()) -> set[str]:
        """Every object that a remaining document names."""
        live: set[str] = set()
        for key in self.store.list_documents(""):
            if key not in without and (text := self.store.get_document(key)) is not None:
                live |= set(object_hashes(json.loads(text)))
        return live

    def _dead_work(self) -> dict[str, int]:
        """Work folders of finished stages: their results are stored, nobody goes on from them."""
        finished = set(self.store.list_documents("stages/"))
        return {
            entry.name: entry.bytes
            for entry in self.store.work()
            if f"stages/{entry.name}" in finished
            and f"stages/{entry.name}" not in self.working
            and entry.age_s >= self.min_age_s
        }


def describe(garbage: Garbage, *, removed: bool) -> str:
    """What was found or removed, for people."""
    verb = "removed" if removed else "would remove"
    lines = [
        f"kept runs: {', '.join(garbage.kept_runs) or 'none'}",
        f"{verb} {len(garbage.runs)} runs, {len(garbage.documents)} documents, {len(garbage.objects)} objects, "
        f"{len(garbage.work)} work folders: {garbage.bytes / 2**20:.1f} MiB",
    ]
    lines += [f"  run {run}" for run in garbage.runs]
    lines += [f"  document {key}" for key in garbage.documents]
    lines += [f"  work {key} {size} bytes" for key, size in sorted(garbage.work.items())]
    lines += [f"  object {name} {size} bytes" for name, size in sorted(garbage.objects.items())]
    if not removed:
        lines.append("nothing was removed: add --delete")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = store_parser("steps.store.collect", __doc__)
    parser.add_argument(
        "--keep-last", type=int, default=None, metavar="N", help="keep the N newest runs only"
    )
    parser.add_argument("--drop", action="append", default=[], metavar="RUN", help="do not keep this run")
    parser.add_argument(
        "--min-age-hours", type=float, default=24.0, help="what is younger stays (at least 1)"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--dry-run", action="store_true", help="only say what would go (the default)")
    choice.add_argument("--delete", action="store_true", help="remove it")
    options = parser.parse_args(arguments)
    if options.min_age_hours < 1.0 or (options.keep_last is not None and options.keep_last < 0):
        parser.error("--min-age-hours must be at least 1, --keep-last at least 0")
    config = store_config(options)
    try:
        if not config.root.startswith("s3:") and not Path(config.root).is_dir():
            parser.error(f"there is no store in {config.root}")
        retention = Retention(options.keep_last, options.drop, options.min_age_hours * _HOUR_S)
        collector = Collector(open_store(config, Path.cwd()), retention)
        garbage = collector.remove() if options.delete else collector.find()
    except SnapFusionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(describe(garbage, removed=options.delete))
    return 0


if __name__ == "__main__":
    sys.exit(main())
