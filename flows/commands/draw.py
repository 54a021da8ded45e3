"""Draws a picture from a finished run: prompt in, PNG out.

    python -m flows.commands.draw "woman surfing dark skin tone" --output surfing.png
    python -m flows.commands.draw "red flag" --model base --steps 50 --seed 3

The run is the newest one with a report, or the one named with --run (a run id as printed at its end).
"""

# ruff: noqa: E402 - the environment must be prepared before anything imports metaflow or transformers
import sys
from pathlib import Path

from flows.environment import WORK_ROOT, prepare_paths

_CALLED_FROM = Path.cwd()
prepare_paths()

import argparse
from typing import get_args

from artifacts_schema.config import Device
from flows.commands.store_options import store_config, store_parser
from steps.files.errors import SnapFusionError
from steps.report.drawing import MODELS, DrawRequest, draw
from steps.report.stored import find_report
from steps.store import open_store


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = store_parser("flows.commands.draw", __doc__)
    parser.add_argument("prompt")
    parser.add_argument("--run", help="run id; default: the newest run with a report")
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


def main() -> int:
    """Parse, draw, say where the picture is."""
    arguments = build_parser().parse_args()
    try:
        store = open_store(store_config(arguments), WORK_ROOT)
        report = find_report(store, arguments.run)
        request = DrawRequest(
            prompt=arguments.prompt,
            model=arguments.model,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            count=arguments.count,
            device=arguments.device,
        )
        target = (_CALLED_FROM / arguments.output).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(draw(store, report, request))
    except SnapFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
