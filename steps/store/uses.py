"""What a run notes of the stages it uses, under `runs/<run id>/`: for the collector of garbage, and for the report."""

import json
from dataclasses import dataclass
from typing import Any

from steps.store.base import Store
from steps.store.cache import StageKey


@dataclass(frozen=True)
class StageUse:
    """A finished stage of a run: cache key, stage version, and whether its record came from the cache."""

    key: str
    version: int
    cached: bool


def mark_use(store: Store, run_id: str, key: StageKey, *, origin: str | None = None) -> None:
    """Note that a run refers to a stage, so that its record and objects stay as long as the run is kept.

    `origin` is the run it resumes, whose finished stages it takes over without asking the cache.
    """
    _note(store, run_id, key, origin, {})


def mark_finished(
    store: Store, run_id: str, key: StageKey, *, name: str, cached: bool, origin: str | None = None
) -> None:
    """Note besides how the stage went; `name` is what the report calls it: stage and, in a foreach, label."""
    _note(store, run_id, key, origin, {"name": name, "version": key.version, "cached": cached})


def _note(store: Store, run_id: str, key: StageKey, origin: str | None, outcome: dict[str, Any]) -> None:
    note = {"entry": key.document, "origin": origin, **outcome}
    store.put_document(f"runs/{run_id}/{key.stage}-{key.sha256}", json.dumps(note))


def stage_uses(store: Store, run_id: str, *, origin: str | None = None) -> dict[str, StageUse]:
    """The finished stages of a run by name, and those that it took over from the run it resumes (`origin`).

    Stages of programs that noted no outcome are left out.
    """
    found: dict[str, StageUse] = {}
    pending, seen = [run_id, *([origin] if origin else [])], set()
    while pending:
        run = pending.pop(0)
        seen.add(run)
        for document in store.list_documents(f"runs/{run}/"):
            note = json.loads(store.get_document(document) or "{}")
            if "name" in note:
                key = document.rsplit("-", 1)[1]
                found.setdefault(note["name"], StageUse(key, note["version"], note["cached"]))
            if note.get("origin") and note["origin"] not in (*seen, *pending):
                pending.append(note["origin"])
    return found
