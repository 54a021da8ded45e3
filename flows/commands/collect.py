"""The garbage collector: removes from a store what no kept run refers to.

    snapfusion collect                                    # only says what it would remove
    snapfusion collect --keep-last 5 --delete             # removes all runs but the five newest
    snapfusion collect --store s3://bucket/project --delete
    snapfusion collect --store s3://bucket/project --cache --delete    # this machine's cache of it instead

A run refers to the stages it used (`runs/<run id>/...`, written before a stage asks the cache) and to the records in
its report. Every run is kept unless --keep-last or --drop says otherwise. Never removed: what is younger than
--min-age-hours, checkpoints of unfinished stages of kept runs, and documents of a kind this program does not know.
Nothing is removed while anything works on the store; what comes meanwhile waits.
"""

import argparse
import sys
from collections.abc import Sequence

from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from steps.cache.collector import HOUR_S, Garbage, Retention, find_garbage, find_in_cache, remove
from steps.cache.notes import read_documents, uses_of
from steps.files.errors import SnapFusionError
from steps.store import local_folder, open_store
from steps.store.base import PARTIAL


def describe(garbage: Garbage, *, removed: bool) -> str:
    """What was found or removed, for people."""
    verb = "removed" if removed else "would remove"
    partial = [name for name in garbage.objects if name.startswith(PARTIAL)]
    lines = [
        f"kept runs: {', '.join(garbage.kept_runs) or 'none'}",
        f"{verb} {len(garbage.runs)} runs, {len(garbage.documents)} documents, "
        f"{len(garbage.objects) - len(partial)} objects, {len(partial)} partial files or unfinished uploads, "
        f"{len(garbage.work)} work folders: {garbage.bytes / 2**20:.1f} MiB",
    ]
    lines += [f"  run {run}" for run in garbage.runs]
    lines += [f"  document {key}" for key in garbage.documents]
    lines += [f"  work {key} {size} bytes" for key, size in sorted(garbage.work.items())]
    lines += [f"  object {name} {size} bytes" for name, size in sorted(garbage.objects.items())]
    if not removed:
        lines.append("nothing was removed: add --delete")
    return "\n".join(lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.collect", __doc__)
    parser.add_argument(
        "--keep-last", type=int, default=None, metavar="N", help="keep the N newest runs only"
    )
    parser.add_argument("--drop", action="append", default=[], metavar="RUN", help="do not keep this run")
    parser.add_argument(
        "--min-age-hours", type=float, default=24.0, help="what is younger stays (at least 1)"
    )
    parser.add_argument(
        "--cache",
        action="store_true",
        help="clear this machine's cache (--local) of a store on S3 of what was fetched before --min-age-hours; "
        "leaves the store as it is",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--dry-run", action="store_true", help="only say what would go (the default)")
    choice.add_argument("--delete", action="store_true", help="remove it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    # NaN, too, which is younger than nothing.
    if not options.min_age_hours >= 1.0 or (options.keep_last is not None and options.keep_last < 0):
        parser.error("--min-age-hours must be at least 1, --keep-last at least 0")
    config = store_config(options)
    remote = config.root.startswith("s3:")
    if options.cache and (not remote or options.drop or options.keep_last is not None):
        parser.error("--cache needs a store on S3, and goes with neither --keep-last nor --drop")
    try:
        folder = local_folder(config, WORK_ROOT)
        if not remote and not folder.is_dir():
            parser.error(f"there is no store in {folder}")
        retention = Retention(options.keep_last, options.drop, options.min_age_hours * HOUR_S)
        store = open_store(config, WORK_ROOT)
        if unknown := sorted(set(options.drop) - set(uses_of(read_documents(store)))):
            parser.error(
                f"--drop names runs that the store does not know: {', '.join(unknown)}; nothing was removed"
            )
        find, place = (find_in_cache, store.cache) if options.cache else (find_garbage, store)
        if options.delete and place is not None:
            garbage = remove(place, lambda: find(store, retention))
        else:
            garbage = find(store, retention)
    except SnapFusionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(describe(garbage, removed=options.delete))
    return 0


if __name__ == "__main__":
    sys.exit(main())
