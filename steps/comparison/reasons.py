"""Why runs differ: what their configurations say, and the first stage whose cache key is another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from artifacts_schema.report import RunReport
from steps.cache.misses import PARTS, differences
from steps.files.errors import DamagedError
from steps.report.trace import flat
from steps.store.base import Store

# Names and places: no result depends on them.
_NO_REASON = ("run.name", "store.", "report.", "promotion.", "schedule.", "notify.")
_PHRASES = 4
_ABSENT = "-"


@dataclass(frozen=True)
class FirstDifference:
    """The first stage that is another in two runs, why (empty where the cache no longer knows), and those after it that
    are the same in both.
    """

    stage: str
    why: tuple[str, ...]
    shared: tuple[str, ...]
    own: tuple[str, ...]


def config_differences(reports: Sequence[RunReport]) -> dict[str, tuple[str, ...]]:
    """Every value that the runs' configurations do not share, by dotted key, one text a run."""
    flats = [dict(flat(report.config)) for report in reports]
    keys = list(dict.fromkeys(key for found in flats for key in found if not key.startswith(_NO_REASON)))
    rows = {
        key: tuple(json.dumps(found[key], ensure_ascii=False) if key in found else _ABSENT for found in flats)
        for key in keys
    }
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def first_difference(store: Store, reference: RunReport, other: RunReport) -> FirstDifference | None:
    """Where two runs part, in the order of the stages; None when every stage that both have is the same."""
    before, now = ({row.stage: row for row in report.stages} for report in (reference, other))
    both = [name for name in before if name in now]
    changed = [name for name in both if not _same(before[name], now[name])]
    if not changed:
        return None
    first = changed[0]
    parts = [_parts(store, first, row.key) for row in (before[first], now[first])]
    why = tuple(islice(differences(*parts), _PHRASES)) if all(parts) else ()
    shared = tuple(name for name in both if name not in changed)
    return FirstDifference(first, tuple(_plain(phrase) for phrase in why), shared, tuple(changed))


def _same(first: Any, second: Any) -> bool:
    """By key; where a program noted none, by what the stage left."""
    if first.key and second.key:
        return bool(first.key == second.key)
    return bool(first.identity == second.identity)


def _parts(store: Store, stage: str, key: str) -> Mapping[str, Any]:
    """What a finished stage's key was made of; empty where the cache does not know it any more."""
    try:
        found = json.loads(store.get_document(f"stages/{stage.split(' ')[0]}/{key}") or "{}").get(PARTS)
    except (DamagedError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _plain(phrase: str) -> str:
    """Without the part of the key that a value stands in: people know it by its own name."""
    return phrase.removeprefix("config.")
