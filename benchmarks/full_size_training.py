"""Stable Diffusion 1.5 at full size through one optimizer step of every training stage, on random weights.

    python -m benchmarks.full_size_training --json benchmarks/results/full_size_training.json
    python -m benchmarks.full_size_training --only teacher_16 --precision fp32

Batch 1, gradient checkpointing, on the CPU. Every stage runs in a process of its own, so that its peak of memory is its own; a
second process goes on from the checkpoint that the first has written. What is done lies in --folder and is not done again.
Needs some 20 GiB of memory and 15 GB of disk. Held-out checks and the decoder's pool are left out: they train nothing.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.run_configs import ComputeConfig
from artifacts_schema.stage_configs import TrainingConfig
from benchmarks.published import ROOT, Metric, publish, result
from benchmarks.sd15_networks import decoder_config, random_weights, unet_config
from steps.diffusion.losses import DistillationLoss, Sampling, VelocityLoss
from steps.diffusion.schedule import NoiseSchedule
from steps.inputs.context import configure_torch, quiet_libraries
from steps.latency.bounds import RESERVE, TRAINED, training_of
from steps.latency.fit import Shapes, needed
from steps.pretraining.base import SCHEDULER
from steps.training.batch import Batch, LossFunction
from steps.training.checkpoint import checkpoint_folders
from steps.training.loop import train
from steps.training.placement import frozen
from steps.training.randomness import keyed_normal
from steps.unet.dropping import SkippingLoss

_SEED, _GIB, _TOKENS, _SAMPLES = 0, 1 << 30, 77, 4
_CPU = torch.device("cpu")
_PRUNED = ("architecture_evolution", "student_16", "student_8")  # their network is `snapfusion-sd15`


class RandomData:
    """Latents and text embeddings of the right shapes, for any split."""

    def __init__(self, unet: dict[str, Any]) -> None:
        self.latent_shape = (4, unet["sample_size"], unet["sample_size"])
        self.width = unet["cross_attention_dim"]
        self.empty_embedding = self.embeddings("train", torch.tensor([_SAMPLES]))

    def size(self, split: str) -> int:
        """As many as there are."""
        return _SAMPLES

    def latents(self, split: str, indices: Tensor, *, seed: int, iteration: int) -> Tensor:
        """(n, c, h, w)"""
        return keyed_normal(self.latent_shape, seed=_SEED, name="latents", iteration=0, indices=indices)

    def embeddings(self, split: str, indices: Tensor) -> Tensor:
        """(n, 77, width)"""
        return keyed_normal((_TOKENS, self.width), seed=_SEED, name="text", iteration=0, indices=indices)

    def training_embeddings(self, split: str, indices: Tensor, **_: Any) -> Tensor:
        """The same."""
        return self.embeddings(split, indices)


@dataclass(frozen=True)
class DecoderLoss:
    """As the stage's, on random latents and pictures."""

    shape: tuple[int, int, int]

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Named terms: loss."""
        latents = keyed_normal(self.shape, seed=_SEED, name="latents", iteration=0, indices=batch.indices)
        decoded = model(latents).float()
        return {"loss": (decoded - torch.zeros_like(decoded)).square().mean()}


def network(stage: str, *, micro: bool) -> Any:
    """What the stage trains, of random weights."""
    if stage == "decoder_distillation":
        return random_weights("small_decoder", micro=micro)
    if stage == "robust_training":
        return random_weights("evolvable", micro=micro)
    return random_weights("snapfusion-sd15" if stage in _PRUNED else "base", micro=micro)


def loss_of(stage: str, config: SnapFusionConfig, *, micro: bool) -> LossFunction:
    """The stage's own loss with its frozen network; each in its most expensive iteration."""
    data = RandomData(unet_config(micro=micro))
    sampling = Sampling(data, NoiseSchedule.from_config(SCHEDULER), 0.1, _CPU)
    precision = training_of(config, stage).precision
    if stage == "decoder_distillation":
        return DecoderLoss(data.latent_shape)
    if stage in ("robust_training", "architecture_evolution"):
        return SkippingLoss(sampling, 0.0)
    teacher = frozen(
        random_weights("snapfusion-sd15" if stage == "student_16" else "base", micro=micro), _CPU, precision
    )
    if stage == "velocity_finetuning":
        return VelocityLoss(teacher, sampling, 0.1, 0.0)  # every sample trusts the base
    guided = 0.0 if stage == "student_16" else 1.0
    steps = 8 if stage == "student_8" else 16
    return DistillationLoss(teacher, sampling, steps, guided, (2.0, 14.0), 0.2)


def configuration(precision: str) -> SnapFusionConfig:
    """One step of one sample everywhere, with a checkpoint after it."""
    training = {
        "iterations": 1, "batch_size": 1, "gradient_checkpointing": True, "precision": precision,
        "warmup_iterations": 0, "checkpoint_interval_s": 1e-6, "log_interval": 1,
    }  # fmt: skip
    return parse_config({stage: {"training": training} for stage in TRAINED})


def predicted(stage: str, config: SnapFusionConfig, *, micro: bool) -> float:
    """Bytes that the plan expects, without its reserve."""
    shapes = Shapes(unet_config(micro=micro), decoder_config(micro=micro), _TOKENS)
    return needed(stage, config, shapes, training_of(config, stage)) / RESERVE


def one_stage(stage: str, options: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: one optimizer step, or going on from the checkpoint that is there."""
    config, folder = configuration(options.precision), options.folder / "checkpoints" / stage
    training: TrainingConfig = training_of(config, stage)
    before = _peak()
    there = bool(checkpoint_folders(folder))
    held = random_weights("base", micro=options.micro) if stage == "decoder_distillation" else None
    model, loss = (
        network(stage, micro=options.micro).requires_grad_(True),
        loss_of(stage, config, micro=options.micro),
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    started = time.monotonic()
    with _timed_steps() as steps:
        outcome = train(model, loss, training=training, samples=_SAMPLES, seed=_SEED, folder=folder)
    del held
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "went_on": float(there),
        "steps": float(len(steps)),
        "step_s": sum(steps),
        "all_s": time.monotonic() - started,
        "loss": outcome.curve[-1]["loss"],
        "parameters": float(count),
        "checkpoint_bytes": float(size),
        "interpreter_bytes": before,
        "peak_bytes": _peak(),
    }


@contextmanager
def _timed_steps() -> Iterator[list[float]]:
    """Seconds of every optimizer step while the block lasts."""
    from unittest.mock import patch

    from steps.training.stepping import Stepper

    seconds: list[float] = []
    real = Stepper.step

    def step(self: Stepper, *args: Any) -> Any:
        started = time.monotonic()
        try:
            return real(self, *args)
        finally:
            seconds.append(time.monotonic() - started)

    with patch.object(Stepper, "step", step):
        yield seconds


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run_stage(stage: str, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """First step and continuation, each from its process or from what an earlier run has left."""
    found = []
    for part in ("step", "continued"):
        note = options.folder / f"{stage}.{options.precision}.{part}.json"
        if not note.is_file():
            command = [sys.executable, "-m", "benchmarks.full_size_training", *sys.argv[1:]]
            command += ["--folder", str(options.folder), "--task", f"{stage}:{note}"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found.append(json.loads(note.read_text()))
    shutil.rmtree(options.folder / "checkpoints" / stage, ignore_errors=True)
    return found[0], found[1]


def metrics_of(stage: str, options: argparse.Namespace) -> list[Metric]:
    """Memory against its prediction, seconds, and what became of the checkpoint."""
    first, second = run_stage(stage, options)
    if (
        first["steps"] != 1.0
        or second["steps"] != 0.0
        or not second["went_on"]
        or first["loss"] != second["loss"]
    ):
        raise SystemExit(f"{stage}: the checkpoint did not continue the training: {first}, {second}")
    told = predicted(stage, configuration(options.precision), micro=options.micro)
    used = first["peak_bytes"] - first["interpreter_bytes"]
    name = f"full_size.training.{stage}"
    trained = f"{first['parameters'] / 1e6:.1f} M parameters"
    return [
        _one(
            f"{name}.peak",
            used / _GIB,
            "GiB",
            f"{trained}; without the interpreter's {first['interpreter_bytes'] / _GIB:.2f}",
        ),
        _one(
            f"{name}.predicted",
            told / _GIB,
            "GiB",
            "without the reserve" + ("; of the base's size" if stage in _PRUNED else ""),
        ),
        _one(f"{name}.prediction_error", told / used - 1.0, "", "predicted over measured, less 1"),
        _one(
            f"{name}.step_seconds",
            first["step_s"],
            "s",
            f"batch 1, {options.precision}, gradient checkpointing",
        ),
        _one(
            f"{name}.checkpoint",
            first["checkpoint_bytes"] / 1e9,
            "GB",
            "written, and continued by another process",
        ),
        _one(f"{name}.continued_peak", second["peak_bytes"] / _GIB, "GiB", "of the process that read it"),
    ]


def _one(name: str, value: float, unit: str, note: str = "") -> Metric:
    return Metric(name, value, unit, 1, value, value, note)


def main() -> int:
    """Parse, measure, publish; or one stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(TRAINED), help="stages, comma-separated")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="the presets' is bf16")
    parser.add_argument("--micro", action="store_true", help="a tiny model: tries this program, no result")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--folder", type=Path, help="kept, so that a stage that is done is not done again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args()
    quiet_libraries()
    if options.task:
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
        configure_torch(ComputeConfig(threads=options.threads))
        stage, _, note = options.task.partition(":")
        Path(note).write_text(json.dumps(one_stage(stage, options)))
        return 0
    measure = partial(metrics_of, options=options)
    with tempfile.TemporaryDirectory() as place:
        options.folder = (options.folder or Path(place)).resolve()
        options.folder.mkdir(parents=True, exist_ok=True)
        metrics = [metric for stage in options.only.split(",") for metric in measure(stage)]
    publish(result(metrics, module="benchmarks.full_size_training", seed=_SEED), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
