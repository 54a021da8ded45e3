"""A few kills of real stages; `python -m benchmarks.kill_stages` is the long version."""

from pathlib import Path

import pytest
import torch

from benchmarks import kill_stages
from benchmarks.kill_stages import STAGES, campaign


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_as_an_uninterrupted_one(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint after each of them, as in the long version.
    monkeypatch.setattr(kill_stages, "TRAINING", kill_stages.TRAINING.model_copy(update={"iterations": 8}))
    torch.use_deterministic_algorithms(True)
    kills, runs, different = campaign(stage, tmp_path, times=2, seed=1)
    assert len(kills) == 2
    assert runs >= 1
    assert different == 0
