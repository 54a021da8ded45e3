"""Draws a picture from a finished run: prompt in, PNG out.

    snapfusion draw "woman surfing dark skin tone" --output surfing.png
    snapfusion draw "red flag" --model base --steps 50 --seed 3

The run is the newest one with a report, or the one named with --run (a run id as printed at its end).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from artifacts_schema.ranges import Device
from flows.commands.prepared import exit_code, write_as_called
from flows.commands.store_options import store_config, store_parser
from flows.environment import WORK_ROOT
from flows.runs import named_report
from steps.cache.leases import in_use
from steps.report.drawing import MODELS, DrawRequest, draw
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.draw", __doc__)
    parser.add_argument("prompt")
    parser.add_argument(
        "--run", help="run id, name, tag, previous or champion; default: the newest run with a report"
    )
    parser.add_argument(
        "--model", choices=MODELS, default="student", help="default: student, the one that ships"
    )
    parser.add_argument(
        "--steps", type=int, help="default: 50 for the base, what it was distilled to for the others"
    )
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1, help="pictures side by side")
    parser.add_argument(
        "--device", choices=get_args(Device), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--output", type=Path, default=Path("picture.png"))
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse, draw, say where the picture is."""
    arguments = build_parser().parse_args(words)

    def work() -> None:
        store = open_store(store_config(arguments), WORK_ROOT)
        request = DrawRequest(
            prompt=arguments.prompt,
            model=arguments.model,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            count=arguments.count,
            device=arguments.device,
        )
        with in_use(store, "draw"):
            write_as_called(arguments.output, draw(store, named_report(store, arguments.run), request))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
