"""Two processes against one, for every stage that trains: how far apart, and what the second one brings.

    python -m benchmarks.two_ranks --json benchmarks/results/two_ranks.json

On the tests' tiny models, gloo, one thread a process; `--efficiency` measures time, too, on the embedded model, and needs
two idle cores.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from artifacts_schema.stage_configs import TrainingConfig, VelocityFinetuningConfig
from benchmarks.plain.setting import Setting
from benchmarks.published import Metric, publish, result
from steps.stages import velocity_finetuning
from tests.factories import stage_context
from tests.steps.stages.two_ranks import STAGES, TRAINING, difference, run

_ROUNDS = 5


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


def efficiency(setting: Setting) -> Metric:
    """Pictures per second of two ranks over twice those of one, one thread a process: the embedded UNet, in turn.

    Two ranks share the batch, and a smaller one takes longer a picture: part of what is missing.
    """
    base = setting.base()
    data = setting.data(base)
    config = VelocityFinetuningConfig(
        training=TrainingConfig(iterations=16, batch_size=setting.batch, log_interval=2, held_out_checks=1)
    )
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(_ROUNDS):
        for processes, found in speeds.items():
            context = stage_context(
                setting.folder / f"speed-{setting.batch}-{number}-{processes}", "velocity_finetuning"
            )
            context = replace(context, processes=processes)
            speed = velocity_finetuning.finetune(base, data, config, context).images_per_s
            found.append(speed.median)  # type: ignore[union-attr]  # it has trained
    shares = [two / (2 * one) for one, two in zip(speeds[1], speeds[2], strict=True)]
    return Metric(
        f"training.two_rank_efficiency.batch_{setting.batch}",
        median(shares),
        "of linear",
        len(shares),
        min(shares),
        max(shares),
        f"embedded UNet, gloo; one rank {median(speeds[1]):.1f} pictures/s; least and most of the rounds",
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
            metrics += [efficiency(Setting(Path(place), False, 1, batch)) for batch in (16, 32)]
    publish(result(metrics, module="benchmarks.two_ranks", seed=1), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
