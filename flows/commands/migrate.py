"""Brings a store of an older layout to the current one.

    python -m flows.commands.migrate --dry-run                          # only says what it would do
    python -m flows.commands.migrate                                    # does it
    python -m flows.commands.migrate --store s3://bucket/project

Stop all runs first: while one holds a lease, the migration is refused. An interrupted migration goes on when the same
command is run again; until then the store is refused by everything else. With a store on S3 the local cache
(--local) is migrated after it.
"""

import sys
from collections.abc import Callable, Sequence

from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from steps.cache.leases import LEASE_S, holder, lease, living
from steps.files.errors import SnapFusionError, StoreError
from steps.store import LocalStore, Store, layout, local_folder, open_store
from steps.store.layout import Marker

_LEASE = "migration"


def migrate(store: Store, say: Callable[[str], object], *, dry_run: bool = False) -> None:
    """Take every step to the current layout, or go on with those of an interrupted migration.

    Tells `say` about each change before it is made. Raises StoreError when a run is at work on the store, when another
    migration is, and when there is no way to the current version; nothing has been changed then.
    """
    marker = _marker(store)
    versions = layout.pending(store, marker)
    if not versions:
        say(f"the store {store.root} has the current layout version {marker.version}: nothing to do")
    elif dry_run:
        _describe(store, versions, say)
    else:
        # A migration of a machine that died holds its lease until it was silent for LEASE_S.
        with lease(store, _LEASE, wait_s=2 * LEASE_S):
            _work(store, say)


def _work(store: Store, say: Callable[[str], object]) -> None:
    """The migration itself, under its lease. Another may have finished while this one waited for it."""
    before = marker = _marker(store)
    _refuse_runs(store)
    for version in layout.pending(store, marker):
        marker = _mark(store, marker, Marker(version, version + 1))
        if before.migrating_to is None and version == before.version:
            _refuse_runs_that_came(store, before, marker)
        migration = layout.MIGRATIONS[version]
        say(f"layout version {version} to {version + 1}: {migration.description}")
        for change in list(migration.changes(store)):
            say(f"  {change.text}")
            change.apply()
    if marker != layout.current():
        _mark(store, marker, layout.current())
    say(f"the store {store.root} has layout version {layout.current().version}")


def _describe(store: Store, versions: Sequence[int], say: Callable[[str], object]) -> None:
    """What `_work` would do. What a later step finds depends on the steps before it."""
    for version in versions:
        migration = layout.MIGRATIONS[version]
        say(f"layout version {version} to {version + 1}: {migration.description}")
        if version == versions[0]:
            for change in migration.changes(store):
                say(f"  {change.text}")
        else:
            say("  its changes are known when the step before it is done")
    for line in _at_work(store):
        say(f"would be refused: {line}")
    say("nothing was changed: leave out --dry-run")


def _marker(store: Store) -> Marker:
    marker = layout.read_marker(store)
    if marker is None:
        raise StoreError(f"there is no store in {store.root}: it has no layout.json")
    return marker


def _mark(store: Store, old: Marker, new: Marker) -> Marker:
    """Write the marker, if it still is what this process believes."""
    text = store.read_layout()
    if _marker(store) != old or not store.swap_layout(text, new.text):
        raise StoreError(
            f"layout.json of the store {store.root} was changed by somebody else; run the migration again"
        )
    return new


def _at_work(store: Store) -> list[str]:
    """Living leases but that of a migration, for people."""
    return [f"{holder(text)} works on {key}" for key, text in sorted(living(store).items()) if key != _LEASE]


def _refuse_runs(store: Store) -> None:
    found = _at_work(store)
    if found:
        raise StoreError(
            f"the store {store.root} is in use: {'; '.join(found)}. Stop what runs there and try again; the lease of a "
            f"machine that died counts for up to {10 * LEASE_S / 60:.0f} minutes"
        )


def _refuse_runs_that_came(store: Store, before: Marker, marker: Marker) -> None:
    """A stage takes its lease and then looks at the marker; this looks at leases after marking: one sees the other."""
    try:
        _refuse_runs(store)
    except StoreError:
        _mark(store, marker, before)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = store_parser("flows.commands.migrate", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    options = parser.parse_args(arguments)
    config = store_config(options)
    remote = config.root.startswith("s3:")
    folder = local_folder(config, WORK_ROOT)
    if not remote and not (folder / "layout.json").is_file():
        parser.error(f"there is no store in {folder}")
    try:
        stores = [open_store(config, WORK_ROOT, any_layout=True)]
        if remote and (folder / "layout.json").is_file():
            stores.append(LocalStore(folder, any_layout=True))
        for store in stores:
            migrate(store, print, dry_run=options.dry_run)
    except SnapFusionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
