"""Notes of use: what a run refers to, told before it does, so that the collector leaves it; and for the report.

`runs/<run id>/<stage>-<key>` names a stage's entry in the cache, and once the stage is done the objects of its record
and whether it came from the cache;
`runs/<run id>/bundle` names the files of the bundle, `runs/<run id>/report` the records of the run's report.
docs/adr/0014-garbage.md
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifacts_schema.base import Record
from artifacts_schema.references import FolderRef
from steps.cache.keys import CacheResult, RecordType, StageKey, cached_stage, object_refs
from steps.cache.leases import in_use
from steps.files.errors import StoreError
from steps.store.base import Entry, Store, parse_document

_LISTINGS = 5  # a wrong bit in each of them is not likely


def stage_of_run(  # noqa: PLR0913 - a run, and what `cached_stage` takes
    store: Store,
    run_id: str,
    key: StageKey,
    work: Callable[[], RecordType],
    *,
    origin: str | None = None,
    enabled: bool = True,
) -> CacheResult:
    """`cached_stage` for a run, whose record and objects stay as long as the run is kept.

    `origin` is the run it resumes, whose finished stages it takes over without asking the cache.
    """
    with in_use(store, f"{key.stage} {key.label}".strip() + f" of run {run_id}"):
        mark_use(store, run_id, key, origin=origin)
        result = cached_stage(store, key, work, enabled=enabled)
        mark_use(store, run_id, key, origin=origin, result=result)
    return result


def mark_use(
    store: Store, run_id: str, key: StageKey, *, origin: str | None = None, result: CacheResult | None = None
) -> None:
    """Note that a run refers to a stage: before the cache is asked, and with the result once there is one.

    The objects are noted as well, because another run may write another record under the key: one that bypasses the
    cache, or that took this one for dead.
    """
    note: dict[str, object] = {"entry": key.document, "origin": origin}
    if result is not None:
        hashes = sorted({sha256 for sha256, _ in object_refs(json.loads(result.record.to_json()))})
        note["objects"] = [{"uri": f"sha256:{sha256}", "sha256": sha256} for sha256 in hashes]
        note |= {"name": f"{key.stage} {key.label}".strip(), "version": key.version, "cached": result.hit}
    store.put_document(_note(run_id, key.document), json.dumps(note))


@dataclass(frozen=True)
class StageUse:
    """A finished stage of a run: cache key, stage version, and whether its record came from the cache."""

    key: str
    version: int
    cached: bool


def stage_uses(store: Store, run_id: str, *, origin: str | None = None) -> dict[str, StageUse]:
    """The finished stages of a run, by what the report calls them (stage and, in a foreach, label), and those that it
    took over from the run it resumes (`origin`). Stages of programs that noted no outcome are left out.
    """
    found: dict[str, StageUse] = {}
    for notes in _notes(store, run_id, origin).values():
        for document, note in notes.items():
            if "name" in note:
                key = document.rsplit("-", 1)[1]
                found.setdefault(note["name"], StageUse(key, note["version"], note["cached"]))
    return found


def first_run(store: Store, run_id: str, origin: str | None) -> str:
    """The run that was not resumed from another: this one, or where its `origin` and that one's origins lead."""
    return list(_notes(store, run_id, origin))[-1] if origin else run_id


def _notes(store: Store, run_id: str, origin: str | None) -> dict[str, dict[str, Any]]:
    """The notes, by document, of a run and of those it goes back to, by run; it first."""
    found: dict[str, dict[str, Any]] = {}
    pending = [run_id, *([origin] if origin else [])]
    while pending:
        run = pending.pop(0)
        documents = store.list_documents(f"runs/{run}/")
        found[run] = {name: parse_document(name, store.get_document(name) or "{}") for name in documents}
        origins = {note["origin"] for note in found[run].values() if note.get("origin")}
        pending += sorted(origins - found.keys() - set(pending))
    return found


def report_of_run(store: Store, run_id: str, report: Record, records: Iterable[Record]) -> None:
    """Store a run's report, and before it the records that it names, and a note of them: a run that is killed in
    between keeps what it has stored.
    """
    texts = {record.identity(): record.to_json() for record in records}
    store.put_document(f"runs/{run_id}/report", json.dumps({"records": sorted(texts)}))
    for identity, text in texts.items():
        store.put_document(f"records/{identity}", text)
    store.put_document(f"reports/{run_id}", report.to_json())


def bundle_of_run(store: Store, run_id: str, bundle: FolderRef) -> None:
    """Note a run's bundle, whose objects no record names before the run's report does."""
    store.put_document(f"runs/{run_id}/bundle", bundle.model_dump_json())


def _note(run_id: str, entry: str) -> str:
    _, stage, key = entry.split("/")
    return f"runs/{run_id}/{stage}-{key}"


@dataclass
class Uses:
    """What a run refers to: documents, and the runs it resumed. Its age is that of its youngest document, in seconds."""

    age_s: float = float("inf")
    documents: set[str] = field(default_factory=set)
    origins: set[str] = field(default_factory=set)


def read_documents(store: Store) -> dict[Entry, str]:
    """All documents but the leases, with what they hold.

    A list has no checksum. Over plain HTTP a wrong bit can put a name that is not there in another's place, and who
    took the other's objects for garbage would be wrong: everything that is listed must be there, or it is listed again.
    Raises StoreError when it never is.
    """
    for _ in range(_LISTINGS):
        entries = [entry for entry in store.documents("") if not entry.name.startswith("leases/")]
        found = {entry: store.get_document(entry.name) for entry in entries}
        missing = [entry.name for entry, text in found.items() if text is None]
        if not missing:
            return {entry: text for entry, text in found.items() if text is not None}
    raise StoreError(
        f"the store {store.root} lists documents that are not there, {_LISTINGS} times: {missing[0]}; "
        "nothing that depends on them is done"
    )


def uses_of(documents: Mapping[Entry, str]) -> dict[str, Uses]:
    """What each run with a note or a report refers to. Raises DamagedError naming a document that does not say it."""
    found: dict[str, Uses] = {}
    for entry, text in documents.items():
        if entry.name.startswith(("runs/", "reports/")):
            uses = found.setdefault(entry.name.split("/")[1], Uses())
            uses.age_s = min(uses.age_s, entry.age_s)
            uses.documents.add(entry.name)
            _add(uses, parse_document(entry.name, text))
    return found


def _add(uses: Uses, found: Mapping[str, Any]) -> None:
    """Add what a note or a report says."""
    if found.get("entry"):
        uses.documents.add(found["entry"])
    if found.get("origin"):
        uses.origins.add(found["origin"])
    identities = [*found.get("inputs", {}).values(), *found.get("records", ())]
    uses.documents |= {f"records/{identity}" for identity in identities}
