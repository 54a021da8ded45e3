"""The layout of a store: which version one has, and what turns an older version into the current one.

The marker `layout.json` in the store's root reads `{"version": 1}`; while `python -m flows.commands.migrate` works,
`{"version": 1, "migrating_to": 2}`. docs/adr/0017-store-layout.md
"""

import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from steps.files.errors import StoreError
from steps.store.base import Store

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Change:
    """One thing that a migration does: what it is, for people, and the doing."""

    text: str
    apply: Callable[[], object]


@dataclass(frozen=True)
class Migration:
    """The step from one layout version to the next.

    `changes` looks at a store and lists what is left to be done; it changes nothing itself. It is asked again after an
    interruption, so a change that was made is no longer listed, and one that was half made can be made again: the new
    place is written before the old one is removed. Documents below `leases/` are in use meanwhile and stay where they are.
    """

    description: str
    changes: Callable[[Store], Iterable[Change]]


# From version n to n + 1. Empty: there has been one layout so far.
MIGRATIONS: dict[int, Migration] = {}


@dataclass(frozen=True)
class Marker:
    """What `layout.json` says."""

    version: int
    migrating_to: int | None = None

    @property
    def text(self) -> str:
        """As it is stored."""
        moving = {} if self.migrating_to is None else {"migrating_to": self.migrating_to}
        return json.dumps({"version": self.version, **moving})


def current() -> Marker:
    """The marker of a store that this program reads and writes."""
    return Marker(LAYOUT_VERSION)


def read_marker(store: Store) -> Marker | None:
    """The store's marker; None for a store that nothing was written to yet. Raises StoreError for one that says nothing."""
    text = store.read_layout()
    if text is None:
        return None
    try:
        found = json.loads(text)
        marker = Marker(int(found["version"]), found.get("migrating_to"))
        valid = marker.migrating_to in (None, marker.version + 1)
    except (ValueError, TypeError, KeyError, AttributeError):
        valid = False
    if not valid:
        raise StoreError(
            f"layout.json of the store {store.root} must name a version, such as {current().text}, "
            f"but holds {text[:100]!r}; restore it from a backup"
        )
    return marker


def mark_new(store: Store) -> None:
    """Give a new store the current version."""
    if store.read_layout() is None:
        store.swap_layout(None, current().text)


def check_layout(store: Store) -> None:
    """Raise StoreError, saying what to do, unless the store is new or has the current version."""
    marker = read_marker(store)
    if marker in (None, current()):
        return
    steps = pending(store, marker)
    command = f"python -m flows.commands.migrate --store {shlex.quote(store.root)}"
    if marker.migrating_to is not None:
        raise StoreError(
            f"the store {store.root} is being migrated from layout version {marker.version} to "
            f"{marker.migrating_to}; wait for the end. If the migration was interrupted, finish it with: {command}"
        )
    raise StoreError(
        f"the store {store.root} has layout version {marker.version}, this program reads {LAYOUT_VERSION}; "
        f"stop its runs, then migrate it ({len(steps)} step{'s' * (len(steps) > 1)}) with: {command}"
    )


def pending(store: Store, marker: Marker) -> list[int]:
    """Versions whose migrations lead from `marker` to the current version, in order.

    Raises StoreError for a newer version, and for one that no migration leads on from.
    """
    found = f"the store {store.root} has layout version {marker.version}, this program reads {LAYOUT_VERSION}"
    newest = max(marker.version, marker.migrating_to or 0)
    if newest > LAYOUT_VERSION:
        raise StoreError(f"{found}; use a version of this program that reads {newest}")
    versions = list(range(marker.version, LAYOUT_VERSION))
    for version in versions:
        if version not in MIGRATIONS:
            raise StoreError(f"{found}; no migration leads on from version {version}")
    return versions
