"""Writes the latency table of a finished run into a file that other runs can name, and that can be contributed.

    snapfusion latency-table --run 1700000000000000 --output assets/latency_tables/sd15_phone.json

What tells of your machines and runs (host, run id) is left out. assets/latency_tables/README.md says what a table needs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.base import Provenance
from artifacts_schema.latency import LatencyTable
from flows.commands.prepared import exit_code, write_as_called
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.runs import named_report
from steps.files.errors import SnapFusionError
from steps.report.stored import record_of
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.latency_table", __doc__)
    parser.add_argument(
        "--run", help="run id, name, tag, previous or champion; default: the newest run with a report"
    )
    parser.add_argument("--output", type=Path, required=True)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, read, write."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        store = open_store(store_config(arguments), WORK_ROOT)
        table: LatencyTable = record_of(store, named_report(store, arguments.run), "latency_profile")
        write_as_called(arguments.output, f"{shareable(table).to_json()}\n".encode())

    return exit_code(work)


def shareable(table: LatencyTable) -> LatencyTable:
    """The table without what tells of somebody's machines. Raises SnapFusionError for one that nobody needs."""
    if table.backend == "macs":
        raise SnapFusionError(
            "the run's table holds MACs, which every machine counts; set latency_profile.backend = 'macs' instead"
        )
    made = table.provenance or Provenance(created_at="")
    kept = {
        "created_at": made.created_at,
        "device": made.device,
        "threads": made.threads,
        "versions": made.versions,
    }
    return table.model_copy(update={"provenance": Provenance.model_validate(kept), "config": {}, "seed": 0})


if __name__ == "__main__":
    sys.exit(main())
