"""Reads everything in a store (objects, documents, checkpoints) and says what is not as it was written.

    snapfusion fsck                                    # reads and tells; 1 when something is damaged
    snapfusion fsck --store s3://bucket/project
    snapfusion fsck --repair                           # removes what can be made or fetched again

Whatever is damaged is never used, with or without this command. --repair removes damaged objects, entries of the stage
cache, checkpoints and cached copies, so that the next run makes, stores or fetches them again; it needs the store to
itself. Reports, records, notes of runs and documents of unknown kinds are left alone: restore them from a backup.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from steps.cache.integrity import Damage, StoreCheck
from steps.cache.leases import alone, in_use
from steps.evolution.kept import check_round
from steps.files.errors import DamagedError, SnapFusionError
from steps.files.sealed import read_sealed
from steps.store import Store, local_folder, open_store
from steps.training.checkpoint import check_checkpoint

# What an unfinished stage goes on from. Its other files are copies of objects, or are made anew.
_CHECKS: dict[str, Callable[[Path], object]] = {
    "checkpoint-*": check_checkpoint,
    "round.json": check_round,
    "probes.json": read_sealed,
}


def damaged_work(store: Store) -> Iterator[Damage]:
    """Damaged files of unfinished stages: on this disk, and in the mirror of a store on S3."""
    folder = store.work_folder("")
    for pattern, check in _CHECKS.items():
        for path in sorted(folder.rglob(pattern)):
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue  # what a killed process left, which nobody goes on from
            try:
                check(path)
            except (DamagedError, FileNotFoundError, KeyError, TypeError) as error:
                remove = partial(shutil.rmtree, path) if path.is_dir() else path.unlink
                yield Damage(f"work {path.relative_to(folder)}", str(error), remove)
    for entry in store.work():
        mirror = store.mirror(entry.name)
        if mirror is None:
            continue
        for name in mirror.names():
            try:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    mirror.fetch(name, Path(scratch) / "file")
            except DamagedError as error:
                yield Damage(
                    f"work {entry.name}/{name} in {store.root}", str(error), partial(mirror.remove, name)
                )


def check(store: Store, *, repair: bool) -> int:
    """Read everything, print and repair; the number of damaged things that are left."""
    look = StoreCheck(store)
    left = 0
    for damages in (look.damages(), damaged_work(store)):
        for damage in damages:
            if repair and damage.remove is not None:
                damage.remove()
                print(f"removed {damage.what}: {damage.why}")
            else:
                left += 1
                print(f"damaged {damage.what}: {damage.why}")
    print(
        f"{look.read['objects']} objects and {look.read['documents']} documents were read; {left} are damaged"
    )
    return left


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.fsck", __doc__)
    parser.add_argument("--repair", action="store_true", help="remove what can be made or fetched again")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. 0 when nothing is damaged, or nothing is any more; 1 otherwise."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    config = store_config(options)
    folder = local_folder(config, WORK_ROOT)
    if not config.root.startswith("s3:") and not folder.is_dir():
        parser.error(f"there is no store in {folder}")
    try:
        store = open_store(config, WORK_ROOT)
        with alone(store) if options.repair else in_use(store, "fsck"):
            return 1 if check(store, repair=options.repair) else 0
    except SnapFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
