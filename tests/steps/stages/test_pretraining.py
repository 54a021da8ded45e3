"""What of a pretraining is done again: nothing that was done with the same settings."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.pretraining import PretrainingConfig
from steps.files.progress import NullProgress
from steps.stages.pretraining import Pretraining

ROOT = Path(__file__).resolve().parents[3]


def test_a_stage_runs_once_for_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def autoencoder(self: Pretraining) -> dict[str, Any]:
        ran.append(self.config.autoencoder.seed)
        return {"psnr_db": 30.0}

    monkeypatch.setattr(Pretraining, "_autoencoder", autoencoder)
    given = tomllib.loads((ROOT / "configs" / "pretrain.toml").read_text())
    config = PretrainingConfig.model_validate(given | {"work": str(tmp_path)})
    first = Pretraining(config, NullProgress()).run("autoencoder")
    assert first == {"psnr_db": 30.0, "config": config.autoencoder.model_dump(mode="json")}
    assert Pretraining(config, NullProgress()).run("autoencoder") == first
    assert json.loads((tmp_path / "summaries/autoencoder.json").read_text()) == first
    other = config.model_copy(update={"autoencoder": config.autoencoder.model_copy(update={"seed": 99})})
    Pretraining(other, NullProgress()).run("autoencoder")
    assert ran == [config.autoencoder.seed, 99]
