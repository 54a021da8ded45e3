"""Goes on with a run where it stopped, as `python flows/snapfusion_flow.py resume` does, which it calls.

    snapfusion resume                        # the last run, where it failed
    snapfusion resume student_16             # from that step
    snapfusion resume --run 1720000000000000

A training goes on from its last checkpoint. The configuration is the run's; to change it use `snapfusion run`, which takes
all that the change does not touch from the cache.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from flows.commands.parser import command_parser
from flows.commands.run import FLOW, add_flow_options, parse_flow_options, start_flow


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("resume", __doc__)
    parser.add_argument("step", nargs="?", choices=steps(), metavar="STEP", help="default: where it failed")
    parser.add_argument("--run", metavar="RUN", help="id of the run; default: the last one")
    add_flow_options(parser)
    return parser


def steps() -> list[str]:
    """Names of the flow's steps, read from its source: importing it takes Metaflow."""
    return re.findall(r"@step\n    def (\w+)", FLOW.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the flow."""
    options, metaflow = parse_flow_options(build_parser(), arguments)
    origin = ["--origin-run-id", options.run] if options.run else []
    start_flow(["resume", *origin, *metaflow, *([options.step] if options.step else [])])


if __name__ == "__main__":
    sys.exit(main())
