"""Gets a student from a model hub into a folder.

    snapfusion fetch owner/name
    snapfusion fetch owner/name --to somewhere --revision v2

The hub is huggingface.co, or the one that HF_ENDPOINT names. Nothing of what was fetched is run: whoever loads the
folder decides that (`load_pipeline`, `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.prepared import as_called, exit_code, parser_for
from flows.commands.publish import online
from steps.files.errors import SnapFusionError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_for(__doc__)
    parser.add_argument("name", help="owner/name of the model repository")
    parser.add_argument("--revision", help="branch, tag or commit; default: the newest")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: ./<name>")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, download, say where it is."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        online()
        from flows.hub import fetch
        from steps.export.diffusers_folder import INDEX

        target = as_called(arguments.to or Path(arguments.name.rpartition("/")[2]))
        fetch(arguments.name, target, revision=arguments.revision)
        if not (target / INDEX).is_file():
            raise SnapFusionError(f"{arguments.name} is no student: expected {INDEX} in it, found none")
        print(target)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
