"""Draws a picture with a bundle's own files, on any machine: prompt in, PNG out.

    python -m flows.commands.draw_bundle .snapfusion/runs/<run id>/bundle "woman surfing" --output surfing.png

Slow: the programs are interpreted (`steps/export/interpreter.py`), not run by Core ML. Seed for seed the noise is that
of `python -m flows.commands.draw`, so that its pictures can be set beside these.
"""

# ruff: noqa: E402 - the environment must be prepared before anything imports transformers
import sys
from pathlib import Path

from flows.environment import prepare_paths

_CALLED_FROM = Path.cwd()
prepare_paths()

import argparse
import logging

from steps.files.errors import SnapFusionError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, help="a bundle's folder")
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--exact", action="store_true", help="do not round float16 results: only the weights are float16"
    )
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    return parser


def main() -> int:
    """Parse, draw, say where the picture is."""
    arguments = build_parser().parse_args()
    # coremltools warns at every import that this is no Mac.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    from steps.export.bundle_run import draw_png

    target = (_CALLED_FROM / arguments.output).resolve()
    try:
        picture = draw_png(
            (_CALLED_FROM / arguments.bundle).resolve(),
            arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=arguments.seed,
            rounded=not arguments.exact,
        )
    except SnapFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(picture)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
