"""What checkpoints cost: the same training with and without them, in turn, with a store on S3.

    python -m benchmarks.checkpoint_cost --json benchmarks/results/checkpoint_cost.json

A step here only computes (matrix products on all cores for `--step-s` seconds), so that the difference is the
checkpoints': copying, hashing, flushing to disk, and sending to an S3 server on this very machine, which takes its share of
the same cores. The interval is the default of the configuration.

    python -m benchmarks.checkpoint_cost --direct --json benchmarks/results/checkpoint_cost.json

takes the processor seconds of single checkpoints instead, this process's threads together, and divides by the interval.
It leaves out waiting for the disk and the server's own share, and is what a busy machine can say.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from artifacts_schema.base import percentile
from artifacts_schema.run_configs import StoreConfig
from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.published import Metric, publish, result
from infra.local.seaweedfs import serve
from steps.store.s3 import S3Store
from steps.training.batch import Batch
from steps.training.checkpoint import Checkpoint
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.loop import train

BUCKET = "checkpoints"


def training(iterations: int, interval_s: float) -> TrainingConfig:
    """A training of which only the checkpoint interval changes."""
    return TrainingConfig(
        iterations=iterations, batch_size=2, checkpoint_interval_s=interval_s, log_interval=iterations
    )


class Busy(nn.Module):
    """A model of `parameters` float32 parameters whose step is a fixed number of matrix products."""

    def __init__(self, parameters: int, products: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(parameters))
        self.square = nn.Parameter(torch.eye(512))
        self.products = products

    def forward(self) -> Tensor:
        """Something that depends on all parameters."""
        x = self.square
        for _ in range(self.products):
            x = x @ self.square
        return x.mean() + self.weights.square().mean()


def loss(model: nn.Module, _: Batch) -> dict[str, Tensor]:
    """The model's own output."""
    return {"loss": model()}


def timed(options: argparse.Namespace, store: S3Store, key: str, interval_s: float) -> float:
    """Seconds of one training, until what it wrote is sent, too."""
    model = Busy(options.parameters, options.products)
    checkpoints = CheckpointFolder(store.work_folder(key) / "checkpoints", store.mirror(key))
    started = time.monotonic()
    train(
        model, loss, training=training(options.iterations, interval_s), samples=64, seed=0, folder=checkpoints
    )
    seconds = time.monotonic() - started
    store.delete_work(key)
    return seconds


def direct(options: argparse.Namespace, store: S3Store) -> list[Metric]:
    """Processor and wall seconds of checkpoints of a model, an average and Adam's two moments, sent to the server."""
    names = ("model", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    draw = torch.Generator().manual_seed(0)
    tensors = {f"{name}.w": torch.randn(options.parameters, generator=draw) for name in names}
    cpu, wall, blocked = [], [], []
    for number in range(options.repeats):
        cpu_started, started = time.process_time(), time.monotonic()
        with CheckpointFolder(store.work_folder("s/k") / "checkpoints", store.mirror("s/k")) as checkpoints:
            checkpoints.save(Checkpoint(number, {name: t.clone() for name, t in tensors.items()}, {}))
            blocked.append(time.monotonic() - started)
        cpu.append(time.process_time() - cpu_started)
        wall.append(time.monotonic() - started)
    note = f"{options.parameters} parameters, {sum(t.nbytes for t in tensors.values()) >> 20} MiB; spread: p10 and p90"
    return [
        row(
            "checkpoint.cpu_share",
            [value / options.interval_s for value in cpu],
            "",
            f"of {options.interval_s:g} s; {note}",
        ),
        row("checkpoint.cpu_seconds", cpu, "s", f"all threads, writing and sending; {note}"),
        row(
            "checkpoint.blocked_seconds",
            blocked,
            "s",
            f"training waits, wall time of this machine as it was; {note}",
        ),
        row("checkpoint.sent_seconds", wall, "s", f"until it is in the store, likewise; {note}"),
    ]


def row(name: str, values: list[float], unit: str, note: str) -> Metric:
    """A median with its spread."""
    middle = statistics.median(values)
    return Metric(name, middle, unit, len(values), percentile(values, 0.1), percentile(values, 0.9), note)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parameters", type=int, default=11_300_000, help="of the model (the embedded UNet's)"
    )
    parser.add_argument("--products", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--interval-s", type=float, default=TrainingConfig().checkpoint_interval_s)
    parser.add_argument("--direct", action="store_true", help="processor seconds of single checkpoints")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as name, serve(Path(name) / "server", stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        os.environ.update(server.environment())
        store = S3Store(StoreConfig(root=f"s3://{BUCKET}/x"), Path(name) / "local")
        if options.direct:
            rows = direct(options, store)
            publish(result(rows, module="benchmarks.checkpoint_cost", seed=0), options.json)
            return 0
        for number in range(options.repeats):
            for kind, interval_s in (("with", options.interval_s), ("without", 1e9)):
                times[kind].append(timed(options, store, f"stage/{kind}-{number}", interval_s))
            print({kind: round(values[-1], 1) for kind, values in times.items()}, file=sys.stderr)
    share = [1.0 - without / with_ for with_, without in zip(times["with"], times["without"], strict=True)]
    note = (
        f"1 - time without / time with; {options.parameters} parameters, interval {options.interval_s:g} s, "
        f"{statistics.median(times['with']):.0f} s a training; spread: p10 and p90"
    )
    value = 1.0 - statistics.median(times["without"]) / statistics.median(times["with"])
    share_row = Metric(
        "checkpoint.time_share", value, "", len(share), percentile(share, 0.1), percentile(share, 0.9), note
    )
    publish(result([share_row], module="benchmarks.checkpoint_cost", seed=0), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
