"""`snapfusion config`: what is shown, what differs, what is refused."""

import json
from pathlib import Path

import pytest

from artifacts_schema.config import SnapFusionConfig, load_config
from flows.commands.config import main


def test_show_resolves_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--preset", "smoke", "--set", "run.seed=7"]) == 0
    shown = capsys.readouterr().out
    config = load_config(shown)
    assert (config.run.seed, config.base.path) == (7, "micro")
    assert main(["show", "--preset", "smoke", "--set", "run.seed=7", "--json"]) == 0
    assert SnapFusionConfig.model_validate_json(capsys.readouterr().out) == config
    assert "width_fraction = 0.5" in shown  # a default that the preset does not name


def test_diff_tells_only_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text('[run]\nname = "smoke"\nseed = 3\nsmoke = true\n')
    assert main(["diff", "smoke", str(tmp_path / "mine.toml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run.seed"] == [0, 3]
    assert found["data.limit"] == [32, None]
    assert "run.name" not in found
    assert main(["diff", "smoke", "smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {}
    assert main(["diff", "smoke", str(tmp_path / "mine.toml")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["run.seed", "0", "3"] in lines
    assert ["data.limit", "32", "-"] in lines


def test_check_names_file_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[run]\nseed = 3\n")
    bad.write_text("[run]\nsed = 3\n")
    assert main(["check", str(good)]) == 0
    assert main(["check", str(bad), str(good)]) == 1
    said = capsys.readouterr()
    assert f"{good}: valid" in said.out
    assert f"{bad}: " in said.err
    assert "did you mean 'run.seed'?" in said.err
