"""What the commands that work on a store have in common: which store is meant, and how they talk."""

import argparse
import logging
import shlex
import sys

from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.run_configs import StoreConfig
from flows.commands.parser import command_of, command_parser


def store_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of the command that `module` is, with the options that name a store."""
    parser = command_parser(command_of(module), description)
    default = StoreConfig()
    parser.add_argument(
        "--store",
        default=default.root,
        help="store.root of the runs; a folder is looked for where flows look, below SNAPFUSION_HOME or the project root",
    )
    parser.add_argument("--local", default=default.local, help="store.local of the runs, with a store on S3")
    parser.add_argument("--endpoint", default=None, help="store.endpoint of the runs, with a store on S3")
    parser.add_argument(
        "--encryption",
        default=default.encryption,
        help="store.encryption of the runs, for what is written to S3",
    )
    parser.add_argument(
        "--kms-key", default=None, help="store.kms_key of the runs, for what is written to S3"
    )
    return parser


def store_options(config: StoreConfig) -> str:
    """The options that name this store to a command of `store_parser`, with a space before each; "" for the default."""
    default = StoreConfig()
    named = [
        ("--store", config.root, default.root),
        ("--local", config.local, default.local),
        ("--endpoint", config.endpoint or "", ""),
        ("--encryption", config.encryption, default.encryption),
        ("--kms-key", config.kms_key or "", ""),
    ]
    return "".join(f" {option} {shlex.quote(value)}" for option, value, usual in named if value != usual)


def store_config(options: argparse.Namespace) -> StoreConfig:
    """The store that was named; log messages go to standard error from here on. Ends the program if it is refused."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it tells where it found keys and endpoint
    values = {
        "root": options.store,
        "local": options.local,
        "endpoint": options.endpoint,
        "encryption": options.encryption,
        "kms_key": options.kms_key,
    }
    try:
        return parse_config({"store": values}).store
    except InvalidConfig as error:
        raise SystemExit(str(error)) from error
