"""Looks whether a training picture is one that is measured on: "zero-shot on COCO" means that none is.

    snapfusion zero-shot --config mine.toml --pictures val2014
    snapfusion zero-shot --preset sd15 --pictures val2014 --json

Every picture of `data.shards` is held against every picture in the folder by a perceptual hash, which bears another size, another
compression and a cut to the centre square. It reads pictures alone, and no model: on one core a million take an hour. What is
found is like, not surely the same: look at it. 1 when something is found.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.configuration import add_config_options, chosen
from flows.commands.parser import command_parser
from flows.commands.prepared import as_called, exit_code
from flows.environment import PROJECT_ROOT
from flows.text import table
from steps.files.errors import ConfigError

_SHOWN = 20


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("zero-shot", __doc__)
    add_config_options(parser)
    parser.add_argument("--pictures", type=Path, required=True, help="the folder that is measured on")
    parser.add_argument("--most-bits", type=int, default=6, help="of 64 that may differ; default: 6")
    parser.add_argument("--json", action="store_true", help="JSON: every pair that was found")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Hash, compare, print; 1 when a training picture is like one of the others."""
    options = build_parser().parse_args(arguments)
    found: list[bool] = []

    def work() -> None:
        from steps.evaluation.zero_shot import check_zero_shot
        from steps.files.progress import TerminalProgress

        config = chosen(options)
        if config.data.source == "openmoji":
            raise ConfigError(
                "data.source is 'openmoji': drawings, which no set of photographs holds; name a configuration with shards"
            )
        result = check_zero_shot(
            config,
            PROJECT_ROOT,
            as_called(options.pictures),
            most_bits=options.most_bits,
            progress=TerminalProgress(),
        )
        found.append(bool(result.matches))
        if options.json:
            print(json.dumps(dataclasses.asdict(result), indent=2))
            return
        print(
            f"{result.training} training pictures, {result.others} others, {result.unreadable} unreadable: found "
            f"{len(result.matches)} within {result.most_bits} of 64 bits"
        )
        if result.matches:
            rows = [(item.training, item.other, str(item.bits)) for item in result.matches[:_SHOWN]]
            print(table([("training picture", "is like", "bits"), *rows]))

    return exit_code(work) or int(any(found))


if __name__ == "__main__":
    sys.exit(main())
