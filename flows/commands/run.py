"""Starts the pipeline, as `python flows/snapfusion_flow.py run` does, which it calls.

    snapfusion run                                       # the included model, under half an hour on two cores
    snapfusion run --preset smoke                        # every stage on a random micro model: a check of the machinery
    snapfusion run --preset openmoji --set run.seed=3 --set evaluation.pictures=256
    snapfusion run --config mine.toml --set store.root=s3://my-bucket/my-project
    snapfusion run --dry-run --set run.seed=3            # only prints the configuration
    snapfusion run -- --with retry                       # what follows -- is Metaflow's

Finished stages that a change does not touch come from the cache. What can be set: docs/configuration.md, or
`snapfusion config show`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from artifacts_schema.config import InvalidConfig
from flows.commands.configuration import add_config_options, chosen, flow_arguments, to_toml
from flows.commands.parser import command_parser
from flows.environment import CODE_ROOT

FLOW = CODE_ROOT / "flows" / "snapfusion_flow.py"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("run", __doc__)
    add_config_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    add_flow_options(parser)
    return parser


def add_flow_options(parser: argparse.ArgumentParser) -> None:
    """Options of Metaflow's `run` and `resume` that everybody needs; `flow_options` reads them."""
    parser.add_argument("--tag", action="append", default=[], help="a tag of the run (again for more)")
    parser.add_argument("--max-workers", type=int, metavar="N", help="tasks at once; default: by the machine")


def parse_flow_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The parsed options, and those for Metaflow: its own after `--`, behind what `add_flow_options` added."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    workers = ["--max-workers", str(options.max_workers)] if options.max_workers else []
    return options, [*(f"--tag={tag}" for tag in options.tag), *workers, *words[end + 1 :]]


def start_flow(arguments: Sequence[str]) -> NoReturn:
    """Become `python flows/snapfusion_flow.py`: signals and exit codes are the flow's own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(FLOW), *arguments])


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the configuration, then start the flow; 1 with one line for each key that is refused."""
    options, metaflow = parse_flow_options(build_parser(), arguments)
    try:
        config = chosen(options)
        command = flow_arguments(options, ["run", *metaflow])
    except (InvalidConfig, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.dry_run:
        print(to_toml(config.model_dump(mode="json")), end="")
        return 0
    start_flow(command)


if __name__ == "__main__":
    sys.exit(main())
