"""Why the stage cache has nothing: what differs from the newest finished run of the same stage."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from steps.files.errors import DamagedError
from steps.store.base import Store

PARTS = "key"  # under this name a finished stage's document holds the parts of its key, beside the record
_LOOK_BACK = 100  # documents that are read at most
_SHOWN = 4
_LONGEST = 60
_ABSENT = object()


def explain_miss(store: Store, parts: Mapping[str, Any]) -> str:
    """What distinguishes the parts of a key from those of the newest finished run of that stage and label."""
    newest = sorted(store.documents(f"stages/{parts['stage']}/"), key=lambda entry: entry.age_s)
    all_known = len(newest) <= _LOOK_BACK
    for entry in newest[:_LOOK_BACK]:
        before = _parts_of(store, entry.name)
        if before is None:
            all_known = False
        elif before["label"] == parts["label"]:
            found = list(differences(before, parts))
            more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
            return ", ".join([*found[:_SHOWN], *more])
    return "never run before" if all_known else "no earlier run is known to compare with"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One phrase for every part of a key that changed, such as `seed 0 -> 1` or `input robust changed`."""
    for name, title in (("version", "stage version"), ("seed", "seed")):
        if before[name] != now[name]:
            yield f"{title} {before[name]} -> {now[name]}"
    for name in sorted({*before["inputs"], *now["inputs"]}):
        if before["inputs"].get(name) != now["inputs"].get(name):
            yield f"input {name} changed"
    for part in ("config", "extra"):
        old, new = (dict(_leaves(part, parts[part])) for parts in (before, now))
        for name in sorted({*old, *new}):
            if old.get(name, _ABSENT) != new.get(name, _ABSENT):
                yield f"{name} {_shown(old.get(name, _ABSENT))} -> {_shown(new.get(name, _ABSENT))}"


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values, down to what is no mapping."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _parts_of(store: Store, document: str) -> Mapping[str, Any] | None:
    """None for a document that is damaged or gone."""
    try:
        found = json.loads(store.get_document(document) or "{}").get(PARTS)
    except (DamagedError, ValueError, AttributeError):
        return None
    return found if isinstance(found, Mapping) else None
