"""Two processes against one, for every stage that trains: how far apart, and what the second one brings.

    python -m benchmarks.two_ranks --json benchmarks/results/two_ranks.json

On the tests' tiny models, gloo, one thread a process; `--efficiency` measures time, too, and needs two idle cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.published import Metric, publish, result
from tests.steps.stages.two_ranks import STAGES, TRAINING, difference, run


def differences(folder: Path) -> list[Metric]:
    """Of the first gradient and of the weights after 20 steps, and those of one process that splits its batches."""
    halves = TRAINING.model_copy(update={"batch_size": TRAINING.batch_size // 2, "accumulation": 2})
    metrics = []
    for name in STAGES:
        one = run(name, folder / name / "1", 1)[1]
        found = difference(one, run(name, folder / name / "2", 2)[1])
        split = difference(one, run(name, folder / name / "split", 1, halves)[1]).weights
        note = f"worst tensor {found.tensor}; one process with the batch in two parts: {split:.2g}"
        for what, value in (("gradient", found.gradient), ("weights", found.weights)):
            metrics.append(
                Metric(f"two_ranks.{name}.{what}", value, "relative", TRAINING.iterations, value, value, note)
            )
        print(f"{name}: {found}, split {split:.2g}", file=sys.stderr, flush=True)
    return metrics


def efficiency(folder: Path) -> Metric:
    """Pictures per second of two ranks over twice those of one, both with one thread a process."""
    training = TRAINING.model_copy(update={"iterations": 60, "batch_size": 16, "held_out_checks": 1})
    speeds = [run("velocity_finetuning", folder / f"speed-{n}", n, training)[0].images_per_s for n in (1, 2)]
    ratio = speeds[1].median / (2 * speeds[0].median)
    return Metric(
        "training.two_rank_efficiency",
        ratio,
        "of linear",
        speeds[0].n,
        speeds[1].p10 / (2 * speeds[0].p90),
        speeds[1].p90 / (2 * speeds[0].p10),
        "tiny UNet, batch 16, gloo, medians; low and high from p10 and p90",
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--efficiency", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        metrics = differences(Path(place))
        if options.efficiency:
            metrics.append(efficiency(Path(place)))
    publish(result(metrics, module="benchmarks.two_ranks", seed=1), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
