"""Against the loops that a user would write, in one run: same models, precision, batch and threads, taken in turn.

    python -m benchmarks.plain_loops --json benchmarks/results/plain_loops.json
    python -m benchmarks.plain_loops --only a,c --threads 1

a step distillation, b decoder distillation, c generation for evaluation, d evaluation of all variants, e preparing data,
f full-size Stable Diffusion 1.5 on random weights, g growth with batch, resolution, pictures and workers. A part takes up
to five minutes on two cores; f needs 10 GiB. It fails where both sides do not compute the same.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from artifacts_schema.run_configs import ComputeConfig
from benchmarks.plain.setting import SEED, Setting, say
from benchmarks.published import Metric, publish, result
from steps.inputs.context import configure_torch, quiet_libraries

PARTS = {
    "a": "step_distillation",
    "b": "decoder",
    "c": "generation",
    "d": "evaluating",
    "e": "preparing",
    "f": "full_size",
    "g": "growth",
}


def measure(parts: list[str], setting: Setting) -> list[Metric]:
    """The metrics of the named parts."""
    metrics: list[Metric] = []
    for part in parts:
        started = time.monotonic()
        module = importlib.import_module(f"benchmarks.plain.{PARTS[part]}")
        found: list[Metric] = module.measure(setting)
        metrics += found
        say(f"{part}: {time.monotonic() - started:.0f} s")
        for metric in found:
            say(
                f"   {metric.name} {metric.value:.4g} {metric.unit} [{metric.low:.4g}, {metric.high:.4g}] {metric.note}"
            )
    return metrics


def main() -> int:
    """Parse, measure, publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument(
        "--quick", action="store_true", help="micro model, one repeat: tries this program, no result"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    quiet_libraries()
    configure_torch(ComputeConfig(threads=options.threads, deterministic=False))
    with tempfile.TemporaryDirectory() as place:
        setting = Setting(
            Path(place),
            options.quick,
            1 if options.quick else options.repeats,
            2 if options.quick else options.batch,
        )
        metrics = measure(parts, setting)
    publish(result(metrics, module="benchmarks.plain_loops", seed=SEED), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
