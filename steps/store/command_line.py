"""What the commands that work on a store have in common: which store is meant, and how they talk."""

import argparse
import logging
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


def store_config(options: argparse.Namespace) -> StoreConfig:
    """The store that was named; log messages go to standard error from here on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return StoreConfig(root=options.store, local=options.local, endpoint=options.endpoint)
