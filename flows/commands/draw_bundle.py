"""Draws a picture with a bundle's own files, on any machine: prompt in, PNG out.

    snapfusion draw-bundle .snapfusion/runs/<run id>/bundle "woman surfing" --output surfing.png

Slow: the programs are interpreted (`steps/export/interpreter.py`), not run by Core ML. Seed for seed the noise is that
of `snapfusion draw`, so that its pictures can be set beside these.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.prepared import as_called, exit_code, parser_for, write_as_called
from steps.export.bundle_run import draw_png


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = parser_for(__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle's folder")
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--exact", action="store_true", help="do not round float16 results: only the weights are float16"
    )
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, draw, say where the picture is."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        picture = draw_png(
            as_called(arguments.bundle),
            arguments.prompt,
            negative_prompt=arguments.negative_prompt,
            seed=arguments.seed,
            rounded=not arguments.exact,
        )
        write_as_called(arguments.output, picture)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
