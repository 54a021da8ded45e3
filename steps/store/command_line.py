"""What the commands that work on a store have in common: which store is meant, and how they talk."""

import argparse
import logging
import shlex
import sys

from artifacts_schema.config import StoreConfig


def store_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, with the options that name a store."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = StoreConfig()
    parser.add_argument("--store", default=default.root, help="store.root of the runs")
    parser.add_argument("--local", default=default.local, help="store.local of the runs, with a store on S3")
    parser.add_argument("--endpoint", default=None, help="store.endpoint of the runs, with a store on S3")
    return parser


def store_options(config: StoreConfig) -> str:
    """The options that name this store to a command of `store_parser`, with a space before each; "" for the default."""
    default = StoreConfig()
    named = [("--store", config.root, default.root), ("--local", config.local, default.local)]
    named.append(("--endpoint", config.endpoint or "", ""))
    return "".join(f" {option} {shlex.quote(value)}" for option, value, usual in named if value != usual)


def store_config(options: argparse.Namespace) -> StoreConfig:
    """The store that was named; log messages go to standard error from here on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it tells where it found keys and endpoint
    return StoreConfig(root=options.store, local=options.local, endpoint=options.endpoint)
