"""What a task says about the cache, what it may read, and that its checkpoints are found again."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.plan import RunPlan
from artifacts_schema.training import TrainingRecord
from flows import stages
from flows.runtime import run_stage
from steps.files.errors import ConfigError, ShortOfMemoryError
from steps.models.stored import save_model
from steps.stages import robust_training
from steps.stages.table import STAGES
from steps.store import LocalStore
from steps.training.loop import train
from tests.factories import tiny_unet
from tests.flows.keys import example

ROOT = Path(__file__).resolve().parents[2]
PLAN: RunPlan = example("run_plan_v1")
TRAINING = {"iterations": 6, "batch_size": 2, "checkpoint_interval_s": 1e-6, "log_interval": 2}


def config(folder: Path, **sections: Any) -> SnapFusionConfig:
    return parse_config({"store": {"root": str(folder / "store")}, **sections})


STAGE = replace(STAGES["robust_training"], reads=("data",))
RECORDS = {"start": PLAN, "velocity_finetuning": example("training_v1")}


def robust(settings: SnapFusionConfig, work: Any) -> Any:
    return run_stage(STAGE, settings, RECORDS, work=work)


def nothing(context: Any, _: Any) -> TrainingRecord:
    """A record of no training."""
    weights = save_model(context.store, tiny_unet(), schema="diffusers.UNet2DConditionModel")
    return TrainingRecord(stage=context.stage, weights=weights, iterations=0, batch_size=1)


def test_the_card_says_hit_or_miss_and_why(task: Any, tmp_path: Path) -> None:
    robust(config(tmp_path), nothing)
    robust(config(tmp_path), nothing)
    robust(config(tmp_path, robust_training={"training": {"learning_rate": 2e-4}}), nothing)
    first, second, third = (item.render()["text"] for item in task.card["progress"])
    assert "robust_training · cache miss: never run before · key " in first
    assert "cache hit: same stage version, config, inputs and seed" in second
    assert "cache miss: config.robust_training.training.learning_rate 0.0001 -> 0.0002 · " in third


def test_a_stage_cannot_read_what_its_key_does_not_hold(task: Any, tmp_path: Path) -> None:
    def reads_the_base(context: Any, inputs: Any) -> TrainingRecord:
        assert inputs.identity("data") == PLAN.data.identity()
        inputs.base  # noqa: B018
        return nothing(context, inputs)

    with pytest.raises(
        ConfigError, match=r"robust_training reads the run's base, but only data in its cache key"
    ):
        robust(config(tmp_path), reads_the_base)


def test_a_stage_cannot_read_a_setting_that_its_key_does_not_hold(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(inputs: Any, settings: Any, context: Any) -> TrainingRecord:
        assert settings.robust_training.training.iterations > 0
        assert settings.step_distillation.gamma >= 0
        return nothing(context, inputs)

    monkeypatch.setattr(robust_training, "run", run)
    with pytest.raises(
        ConfigError, match=r"robust_training reads step_distillation of the configuration, but only "
    ):
        run_stage(STAGE, config(tmp_path), RECORDS)


class Stopped(Exception):
    """The machine is taken away."""


def test_a_training_goes_on_after_a_change_of_operational_values(task: Any, tmp_path: Path) -> None:
    """Neither the checkpoint interval nor the logging interval starts a training over."""
    began: list[int] = []

    def work(settings: SnapFusionConfig, stop_at: int) -> Any:
        def trained(context: Any, _: Any) -> TrainingRecord:
            def loss(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
                if not began or began[-1] < 0:
                    began.append(batch.iteration)
                if batch.iteration == stop_at:
                    raise Stopped
                return {"loss": model(torch.ones(2, 1)).square().mean()}

            began.append(-1)
            outcome = train(
                nn.Linear(1, 1), loss, training=settings.robust_training.training, samples=8, seed=context.seed,
                folder=context.checkpoints(),
            )  # fmt: skip
            record = nothing(context, None)
            return record.model_copy(
                update={"curve": tuple(outcome.curve), "config": settings.robust_training.meaning()}
            )

        return trained

    before = config(tmp_path, robust_training={"training": TRAINING})
    changed = TRAINING | {"checkpoint_interval_s": 900.0, "log_interval": 3}
    after = config(tmp_path, robust_training={"training": changed})
    with pytest.raises(Stopped):
        robust(before, work(before, stop_at=4))
    went_on = robust(after, work(after, stop_at=99))
    assert [at for at in began if at >= 0] == [0, 4]
    elsewhere = config(tmp_path / "elsewhere", robust_training={"training": TRAINING})
    straight = robust(elsewhere, work(elsewhere, stop_at=99))
    assert straight.identity() == went_on.identity()
    assert straight.curve != went_on.curve


def test_without_the_cache_nothing_counts_that_another_run_left(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what the run itself left does, and what the runs left that it goes back to."""
    mirrors: set[str] = set()
    monkeypatch.setattr(LocalStore, "mirror", lambda _, name: mirrors.add(name))
    uncached = config(tmp_path, store={"root": str(tmp_path / "store"), "cache": False})

    def finds(run_id: str, origin: str | None, settings: SnapFusionConfig = uncached) -> bool:
        found: list[bool] = []

        def unfinished(context: Any, _: Any) -> TrainingRecord:
            found.append((context.work / "left").exists())
            (context.work / "left").touch()
            assert context.work == tmp_path / "store" / "work" / sorted(mirrors, key=len)[-1]
            mirrors.clear()
            raise Stopped

        task.run_id, task.origin_run_id = run_id, origin
        with pytest.raises(Stopped):
            robust(settings, unfinished)
        return found[0]

    assert [finds("1", None, config(tmp_path)), finds("2", None, config(tmp_path))] == [False, True]
    assert [finds("3", None), finds("3", None), finds("4", "3"), finds("5", "4")] == [False, True, True, True]
    assert [finds("6", None), finds("7", None, config(tmp_path))] == [False, True]


def test_a_run_whose_start_is_cached_is_checked_all_the_same(task: Any, tmp_path: Path) -> None:
    """And its start imports no torch."""

    def smoke(**sections: Any) -> SnapFusionConfig:
        base = {"path": "micro", "warm_start": False}
        return config(tmp_path, base=base, data={"limit": 32}, **sections)

    stages.start(smoke())
    assert "cache miss" in task.card["progress"][-1].render()["text"]
    refused: list[dict[str, Any]] = [
        {"compute": {"sigterm_grace_s": 1e-9}},
        {"coreml_export": {"program_check": {"timesteps": [1000]}}},
        {"coreml_export": {"components": ["safety_checker"]}},
    ]
    for sections in refused:
        with pytest.raises(ConfigError):
            stages.start(smoke(**sections))
    code = (
        "import sys; from types import SimpleNamespace; from flows import runtime, stages\n"
        "from artifacts_schema.config import parse_config\n"
        "runtime.current = SimpleNamespace(card={'progress': []}, run_id='2', origin_run_id=None)\n"
        f"stages.start(parse_config({smoke().model_dump(mode='json')!r}))\n"
        "print('torch' in sys.modules)"
    )
    second = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "start: cache hit" in second.stdout
    assert second.stdout.splitlines()[-1] == "False"


def test_memory_that_runs_out_is_told_with_the_setting_to_change(task: Any, tmp_path: Path) -> None:
    def too_large(context: Any, _: Any) -> TrainingRecord:
        torch.empty(1 << 50, dtype=torch.uint8)
        raise AssertionError("so much memory")

    with pytest.raises(
        ShortOfMemoryError, match=r"set robust_training\.training\.gradient_checkpointing = true"
    ):
        robust(config(tmp_path), too_large)
