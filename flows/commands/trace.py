"""Says what a bundle was made from: which runs, and their code, data and configuration.

    snapfusion trace .snapfusion/runs/<run id>/bundle

Without the store of the run it says what the bundle's own manifest does: hashes of weights and records.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.prepared import as_called, exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from steps.export.manifest import check_files, read_manifest
from steps.report.trace import describe, made_of, runs_of
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.trace", __doc__)
    parser.add_argument("bundle", type=Path, help="a bundle's folder")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, look, print. 1 when the bundle was changed or no run is known that made it."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        folder = as_called(arguments.bundle)
        manifest, text = read_manifest(folder)
        print(f"bundle {folder}", *made_of(manifest, text), sep="\n")
        check_files(folder, manifest)
        store = open_store(store_config(arguments), WORK_ROOT)
        for run_id, report in runs_of(store, text).items():
            print("", *describe(store, run_id, report), sep="\n")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
