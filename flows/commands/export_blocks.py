"""Writes the latency kit of a base: every block as a package, for a Mac or an iPhone to time.

    python -m flows.commands.export_blocks --config configs/openmoji.toml kit

Copy the folder to a Mac and run `python3 measure_on_mac.py` in it; then set `latency_profile.backend = "device"` and
`latency_profile.table` to the latency.json that it leaves, with the kit's manifest.json beside it.
"""

# ruff: noqa: E402 - the environment must be prepared before anything imports transformers
import sys
from pathlib import Path

from flows.environment import CODE_ROOT, PROJECT_ROOT, prepare_paths

_CALLED_FROM = Path.cwd()
prepare_paths()

import argparse
import logging
import tempfile

from artifacts_schema.config import InvalidConfig, load_config_file
from steps.files.errors import SnapFusionError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the kit goes; must be empty or not there")
    parser.add_argument("--config", type=Path, default=CODE_ROOT / "configs/openmoji.toml")
    return parser


def main() -> int:
    """Parse, export, say what to do next."""
    arguments = build_parser().parse_args()
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from steps.files.progress import TerminalProgress
    from steps.inputs.context import quiet_libraries
    from steps.inputs.folders import MICRO, base_folder
    from steps.models.base import load_base
    from steps.pretraining.micro import write_micro_base
    from steps.stages.latency_kit import export_blocks

    quiet_libraries()
    folder = (_CALLED_FROM / arguments.folder).resolve()
    try:
        config = load_config_file(_CALLED_FROM / arguments.config)
        with tempfile.TemporaryDirectory() as scratch:
            micro = config.base.path == MICRO
            path = write_micro_base(Path(scratch) / "base") if micro else base_folder(config, PROJECT_ROOT)
            kit = export_blocks(load_base(path), folder, config.coreml_export, progress=TerminalProgress())
    except (SnapFusionError, InvalidConfig, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(kit.models)} models of {len(kit.parts)} parts in {folder}")
    print("next: copy it to a Mac and run python3 measure_on_mac.py in it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
