"""Puts a run's student on a model hub: weights, the classes that diffusers lacks, and its card.

    snapfusion publish latest owner/name
    snapfusion publish .snapfusion/runs/<run id>/student owner/name --private

The hub is huggingface.co, or the one that HF_ENDPOINT names. It takes a token: `hf auth login`, or HF_TOKEN.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.prepared import as_called, exit_code
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.load import student_folder
from steps.cache.leases import in_use
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.publish", __doc__)
    parser.add_argument("run", help="run id or name, `latest`, `champion`, or a student's folder")
    parser.add_argument("name", help="owner/name of the model repository")
    parser.add_argument("--private", action="store_true", help="a repository that only its owner sees")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, upload, say where it is."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        online()
        from flows.hub import publish
        from steps.export.diffusers_folder import check_code

        folder = as_called(Path(arguments.run))
        if folder.is_dir():
            check_code(folder)
            print(publish(folder, arguments.name, private=arguments.private))
            return
        store = open_store(store_config(arguments), WORK_ROOT)
        with in_use(store, "publish"), student_folder(arguments.run, store) as fetched:
            print(publish(fetched, arguments.name, private=arguments.private))

    return exit_code(work)


def online() -> None:
    """Let this command talk to the hub: every other one has been told to ask none. Call it before huggingface_hub is imported."""
    os.environ["HF_HUB_OFFLINE"] = "0"


if __name__ == "__main__":
    sys.exit(main())
