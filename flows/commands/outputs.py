"""Fetches what a run leaves for people from its store, on any machine: bundle, student, report.json and pictures.

    snapfusion outputs                                    # of the newest run, to .snapfusion/runs/<run id>
    snapfusion outputs 1720000000000000 --to results
    snapfusion outputs 42 --store s3://bucket/project

Every file is verified by its hash. Files of the same names are replaced, others stay.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.run_configs import ReportConfig
from flows.commands.prepared import as_called, exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.runs import named_report
from steps.cache.leases import in_use
from steps.report.outputs import fetch_outputs
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.outputs", __doc__)
    parser.add_argument(
        "run",
        nargs="?",
        help="run id, name, tag, previous or champion; default: the newest run with a report",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="default: where runs on this machine put theirs"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, fetch, say where everything is."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        store = open_store(store_config(arguments), WORK_ROOT)
        with in_use(store, "outputs"):
            report = named_report(store, arguments.run)
            usual = WORK_ROOT / ReportConfig().output / Path(report.folder).name
            folder = as_called(arguments.to) if arguments.to else usual
            fetch_outputs(store, report, folder)
        print(folder)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
