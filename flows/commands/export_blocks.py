"""Writes the latency kit of a base: every block as a package, for a Mac or an iPhone to time.

    snapfusion export --config configs/openmoji.toml kit

Copy the folder to a Mac and run `python3 measure_on_mac.py` in it; then set `latency_profile.backend = "device"` and
`latency_profile.table` to the latency.json that it leaves, with the kit's manifest.json beside it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.config import load_config_file
from flows.commands.prepared import as_called, exit_code, parser_for
from flows.environment import CODE_ROOT, PROJECT_ROOT
from steps.files.progress import TerminalProgress
from steps.inputs.context import quiet_libraries
from steps.inputs.folders import MICRO, base_folder
from steps.models.base import load_base
from steps.pretraining.micro import write_micro_base
from steps.stages.latency_kit import export_blocks


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_for(__doc__)
    parser.add_argument("folder", type=Path, help="where the kit goes; must be empty or not there")
    parser.add_argument("--config", type=Path, default=CODE_ROOT / "configs/openmoji.toml")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, export, say what to do next."""
    arguments = build_parser().parse_args(words)
    quiet_libraries()

    def work() -> None:
        folder, config = as_called(arguments.folder), load_config_file(as_called(arguments.config))
        with tempfile.TemporaryDirectory() as scratch:
            micro = config.base.path == MICRO
            path = write_micro_base(Path(scratch) / "base") if micro else base_folder(config, PROJECT_ROOT)
            kit = export_blocks(load_base(path), folder, config.coreml_export, progress=TerminalProgress())
        print(f"{len(kit.models)} models of {len(kit.parts)} parts in {folder}")
        print("next: copy it to a Mac and run python3 measure_on_mac.py in it")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
