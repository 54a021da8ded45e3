"""Encodes the shards of a configuration's data: one worker of as many as there are, here and on other machines.

    snapfusion encode --config mine.toml                 # on each GPU, or machine; again after it was cut off
    snapfusion encode --config mine.toml --set compute.device=cuda

`start` of a run does the same with what is left, and waits for workers that are still at it: a run can be started before,
meanwhile or after. Each shard is encoded once; all workers need the same store, base and [data]. A shard is left out, or the
worker ends, as data.max_skipped_fraction says.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from artifacts_schema.config import SnapFusionConfig
from flows.commands.configuration import add_config_options, chosen
from flows.commands.parser import command_parser
from flows.commands.prepared import exit_code
from flows.environment import PROJECT_ROOT, WORK_ROOT
from flows.fetched import with_inputs_here
from steps.cache.leases import in_use
from steps.files.errors import ConfigError
from steps.files.hashes import FileHashes
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("encode", __doc__)
    add_config_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode, and tell how many there are; 1 with one line when something is wrong."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: encode(chosen(options)))


def encode(config: SnapFusionConfig) -> None:
    """Encode until every shard is. Raises ConfigError for data that have none."""
    if config.data.source != "webdataset":
        raise ConfigError(
            "data.source is 'openmoji', whose pictures `start` encodes itself; name shards, with source 'webdataset'"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # else it tells where it found keys and endpoint
    from steps.files.progress import TerminalProgress
    from steps.inputs.context import StageContext, configure_torch, quiet_libraries, select_device
    from steps.inputs.folders import raw_data
    from steps.stages import start

    config, store = with_inputs_here(config), open_store(config.store, WORK_ROOT)
    quiet_libraries()
    configure_torch(config.compute)
    with in_use(store, "encode"):
        raw = raw_data(
            config.data, PROJECT_ROOT, FileHashes(WORK_ROOT / ".snapfusion" / "hashes"), config.store
        )
        context = StageContext(
            stage="start",
            store=store,
            work=store.work_folder("start/encode"),
            seed=config.run.seed,
            device=select_device(config.compute),
            progress=TerminalProgress(),
        )
        found = start.encode(raw, config, context, PROJECT_ROOT)
    pictures = sum(shard.rows for item in found for shard in item.splits.values())
    print(f"{len(found)} shards are encoded, {pictures} pictures")


if __name__ == "__main__":
    sys.exit(main())
