"""The finished runs in a store, newest first.

    snapfusion runs
    snapfusion runs --limit 5 --json
    snapfusion runs --store s3://bucket/project

distance: the kernel distance of the 8-step student with the small decoder over that of the base in 50 steps (1: as good);
clip: the difference of their CLIP scores (0: as good); ms: a guided step of the student's UNet by the run's latency table;
MiB: the bundle's packages; *: the champion. Intervals: `snapfusion show <id>`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from flows.commands.prepared import exit_code
from flows.commands.store_options import store_config, store_parser
from flows.run import all_runs, store_at
from flows.text import table
from steps.registry.champion import current_champion

_HEAD = ("", "id", "name", "preset", "date", "distance", "clip", "ms", "MiB")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.runs", __doc__)
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the N newest")
    parser.add_argument("--json", action="store_true", help="JSON: a list of objects")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, look, print."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        store = store_at(store_config(options))
        promoted = current_champion(store)
        rows = [run.row(promoted) for run in islice(all_runs(store), options.limit)]
        if options.json:
            print(json.dumps(rows, indent=2))
        elif rows:
            print(table([_HEAD, *map(_line, rows)]))
        else:
            print(f"no finished run in the store {store.root}: `snapfusion run` makes one")

    return exit_code(work)


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    label = f"{row['preset']} (smoke)" if row["smoke"] and row["preset"] != "smoke" else row["preset"]
    numbers = (("distance", ".2f"), ("clip", "+.3f"), ("ms", ".1f"), ("size_mib", ".1f"))
    return (
        "*" if row["champion"] else "",
        row["id"],
        row["name"],
        label,
        row["date"][:16].replace("T", " "),
        *("-" if row[name] is None else format(row[name], form) for name, form in numbers),
    )


if __name__ == "__main__":
    sys.exit(main())
