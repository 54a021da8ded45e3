"""The real ablation flow over a finished smoke run: two arms of two iterations, one card, and the second time from the store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.launched import ROOT, SMOKE, SmokeRun, run

FLOW = ROOT / "flows" / "ablation_flow.py"


@pytest.mark.long
def test_two_arms_over_a_finished_run(smoke_run: SmokeRun, tmp_path: Path) -> None:
    home, config = smoke_run.seed(tmp_path / "home"), tmp_path / "short.toml"
    assert run(home, "--config", "config", str(SMOKE), "run").returncode == 0
    config.write_text('iterations = 2\nbatch_size = 2\npictures = 8\narms = ["c_vanilla"]\n')
    first, again = (run(home, "--config", "config", str(config), "run", script=FLOW) for _ in range(2))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    assert "c_vanilla: missing" in first.stdout and "reference: missing" in first.stdout
    assert again.returncode == 0 and "c_vanilla: found" in again.stdout
    published = tmp_path / "ablations.json"
    command = [
        "-m",
        "benchmarks.ablations",
        "--store",
        str(home / ".snapfusion/store"),
        "--json",
        str(published),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    names = {metric["name"] for metric in json.loads(published.read_text())["metrics"]}
    assert {
        "ablation.c_vanilla.8_steps.kernel_distance",
        "ablation.c_vanilla.2_steps.clip_score_difference",
    } <= names
    refused = tmp_path / "none.toml"
    (home / "overlays").mkdir()
    (home / "overlays" / "same.toml").write_text("# Nothing?\n[step_distillation]\ngamma = 0.2\n")
    refused.write_text(f'overlays = "{home / "overlays"}"\n')
    ended = run(home, "--config", "config", str(refused), "run", script=FLOW)
    assert ended.returncode != 0
    assert "overlay same changes nothing" in ended.stdout + ended.stderr
