"""The numbers of the few-step benchmark, and one run of it on the micro base."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import few_step
from benchmarks.few_step_metrics import REFERENCE, Measured, metrics, picture_grid
from steps.evaluation.distances import clustered_mean

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def measured(error: float, distance: float, clip: float, seed: int) -> Measured:
    noise, groups = np.random.default_rng(seed).normal(scale=0.01, size=64), [str(i) for i in range(64)]
    means = (np.full(64, error) * (1 + noise), clip + noise, np.full(64, distance) * (1 + noise))
    return Measured(
        torch.zeros(64, 3, 8, 8, dtype=torch.uint8), *(clustered_mean(values, groups) for values in means)
    )


def everything() -> dict[str, Measured]:
    return {
        REFERENCE: measured(0.0, 1.0, 0.30, 0),
        "base_50": measured(0.1, 1.0, 0.30, 1),
        "student_2": measured(0.25, 1.5, 0.28, 2),
        "velocity_2_ddim": measured(1.0, 3.0, 0.20, 3),
        "base_2_dpm": measured(0.5, 2.0, 0.22, 4),
    }


def test_ratios_are_student_over_plain_sampling() -> None:
    rows = {metric.name: metric for metric in metrics(everything(), [2])}
    ratio = rows["student2_vs_dpm2.distance_ratio"]
    assert ratio.value == pytest.approx(0.75, rel=0.02)
    assert ratio.low < ratio.value < ratio.high
    assert rows["student2_vs_ddim2.latent_mse_ratio"].value == pytest.approx(0.25, rel=0.02)
    assert rows["student2_vs_base50.clip_difference"].value == pytest.approx(-0.02, abs=0.005)
    assert "student2_vs_base50.latent_mse_ratio" not in rows
    assert rows["few_step.student_2.latent_mse_to_50"].n == 64
    assert f"few_step.{REFERENCE}.latent_mse_to_50" not in rows


def test_the_grid_has_a_row_per_variant() -> None:
    assert picture_grid(everything(), [REFERENCE, "student_2"]).startswith(b"\x89PNG")


@pytest.mark.long
def test_runs_on_the_micro_base_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps.pretraining.micro import write_micro_base, write_micro_openclip

    base, clip = write_micro_base(tmp_path / "base"), write_micro_openclip(tmp_path / "clip")
    options = (
        f"--base {base} --velocity {base / 'unet'} --clip {clip} --work {tmp_path / 'work'} --iterations 2"
    )
    options += " --batch-size 2 --pictures 8 --data-limit 16 --threads 1 --students 2 1"
    options += f" --json {tmp_path / 'out.json'} --grid {tmp_path / 'out.png'}"
    monkeypatch.setattr(sys, "argv", ["few_step", *options.split()])
    few_step.main()
    document = json.loads((tmp_path / "out.json").read_text())
    assert set(document) == {"command", "commit", "machine", "date", "seed", "metrics"}
    assert {"student2_vs_dpm2.distance_ratio", "student1_vs_base50.clip_difference"} <= {
        metric["name"] for metric in document["metrics"]
    }
    assert (tmp_path / "out.png").stat().st_size > 0

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("drew again what is on disk")

    monkeypatch.setattr(few_step, "sample_latents", forbidden)
    few_step.main()
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == document["metrics"]
