"""Compares finished runs in the terminal: the verdict, why they differ, and the metrics.

    snapfusion compare 1720000000000000 latest
    snapfusion compare champion nightly lr:2e-4

Runs are named by run id, name or tag, or as `latest`, `previous` and `champion`; the others are held against the first.
`python flows/compare_flow.py run --runs A,B` makes a card of it, with pictures, charts and cost.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence

from flows.commands.prepared import exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.runs import compared
from steps.cache.leases import in_use
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.compare", __doc__)
    parser.add_argument("runs", nargs="+", help="the first is what the others are held against")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, compare, print."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        from steps.comparison.words import comparison_lines

        store = open_store(store_config(arguments), WORK_ROOT)
        width = max(60, shutil.get_terminal_size().columns)
        with in_use(store, "compare"):  # nothing is collected meanwhile
            lines = comparison_lines(store, compared(store, arguments.runs))
        for line in lines:
            print(line if "  " in line.strip() else textwrap.fill(line, width, subsequent_indent="  "))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
