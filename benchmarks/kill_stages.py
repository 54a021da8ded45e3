"""Kills single stages with SIGKILL at random moments until they are through; the record must be that of an uninterrupted run.

    python -m benchmarks.kill_stages --times 20 --json benchmarks/results/kill_stages.json

Robust training and architecture evolution (probes, actions and trainings) on the tests' tiny models, a checkpoint after
every iteration. Each try is a forked process with its own store and work folder on disk; after the kill the next goes on
from what it finds there. `benchmarks.kill_resume` kills the whole flow, which takes much longer.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from artifacts_schema.base import content_hash
from artifacts_schema.stage_configs import (
    ArchitectureEvolutionConfig,
    LatencyProfileConfig,
    RobustTrainingConfig,
    TrainingConfig,
)
from benchmarks.published import Metric, publish, result
from steps.models.stored import save_model
from steps.stages import architecture_evolution, latency_profile, robust_training
from tests.factories import context, tiny_base, tiny_unet
from tests.steps.evolution.factories import BrightnessScorer, TinyData

TRAINING = TrainingConfig(
    iterations=24, batch_size=2, log_interval=3, learning_rate=1e-3, checkpoint_interval_s=1e-6
)


def robust(folder: Path) -> str:
    """Hash of the record's identity (weights' hash, configuration) and its curve."""
    stage = context(folder, "robust_training")
    velocity = save_model(stage.store, tiny_unet(), schema="diffusers.UNet2DConditionModel")
    config = RobustTrainingConfig(training=TRAINING, drop_probability=0.5)
    record = robust_training.train_robust(tiny_base(), velocity, TinyData(), config, stage)
    return content_hash([record.identity(), list(record.curve)])


def evolution(folder: Path) -> str:
    """Identity of the record: weights' hash, architecture, every probe's score."""
    stage = context(folder, "architecture_evolution")
    base = tiny_base()
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    weights = save_model(stage.store, tiny_unet(), schema="diffusers.UNet2DConditionModel")
    config = ArchitectureEvolutionConfig(
        training=TRAINING.model_copy(update={"iterations": 8}), latency_budget=0.75, rounds=2, actions_per_round=3,
        captions_per_batch=2, most_captions=4, probe_steps=1, probe_guidance_scale=1.0,
    )  # fmt: skip
    return architecture_evolution.evolve(
        base, weights, table, TinyData(), BrightnessScorer(), config=config, context=stage
    ).identity()


STAGES: dict[str, Callable[[Path], str]] = {"robust_training": robust, "architecture_evolution": evolution}


def start(work: Callable[[Path], str], folder: Path) -> int:
    """Do the work in a process of its own, which leaves the identity in `folder`; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        (folder / "identity").write_text(work(folder))
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
        (folder / "error").write_text(repr(error))
        os._exit(1)


def ended(pid: int, after_s: float) -> bool:
    """Wait that long; True when the process has ended by itself. Raises RuntimeError when it has failed."""
    until = time.monotonic() + after_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status != 0:
                raise RuntimeError(f"a stage failed by itself with status {status}")
            return True
        time.sleep(0.002)
    return False


def straight(work: Callable[[Path], str], folder: Path) -> tuple[str, float]:
    """The identity of an uninterrupted run, and its seconds."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    ended(start(work, folder), 3600.0)
    return (folder / "identity").read_text(), time.monotonic() - started


def killed(
    work: Callable[[Path], str], folder: Path, draw: random.Random, longest_s: float, most: int
) -> tuple[str, list[float]]:
    """Kill and go on, at most `most` times; the identity in the end, and after how many seconds each kill came."""
    folder.mkdir(parents=True)
    kills: list[float] = []
    while True:
        pid = start(work, folder)
        after_s = draw.uniform(0.0, longest_s) if len(kills) < most else 3600.0
        if ended(pid, after_s):
            return (folder / "identity").read_text(), kills
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills.append(after_s)


def campaign(name: str, folder: Path, *, times: int, seed: int) -> tuple[list[float], int, int]:
    """Kills of one stage, runs that came through, and how many of them differed."""
    expected, seconds = straight(STAGES[name], folder / "straight")
    draw = random.Random(f"{name}/{seed}")  # noqa: S311
    kills: list[float] = []
    runs = different = 0
    while len(kills) < times:
        found, new = killed(STAGES[name], folder / f"run-{runs}", draw, seconds * 0.7, times - len(kills))
        kills += new
        runs += 1
        different += found != expected
        print(f"{name}: {len(kills)} kills, {runs} runs, {different} different", file=sys.stderr, flush=True)
    return kills, runs, different


def main() -> int:
    """Run the campaign and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="kills of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rows, bad = [], 0
    with tempfile.TemporaryDirectory() as place:
        for name in STAGES:
            kills, runs, different = campaign(
                name, Path(place) / name, times=options.times, seed=options.seed
            )
            bad += different
            note = f"{len(kills)} kills, {statistics.median(kills):.2f} s (median) after a start; {runs} runs came through"
            rows.append(
                Metric(f"kills.{name}.different", different, "runs", len(kills), different, different, note)
            )
    publish(result(rows, module="benchmarks.kill_stages", seed=options.seed), options.json)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
