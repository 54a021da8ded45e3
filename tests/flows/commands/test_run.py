"""`snapfusion run` and `resume`: what they start the flow with."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.config import load_config, load_config_file
from flows.commands import resume, run
from flows.presets import FOLDER, differences, presets


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words that the flow was started with."""
    words: list[str] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: words.extend([program, *arguments]))
    return words


def test_a_preset_is_given_as_its_file(started: list[str]) -> None:
    run.main(["--preset", "smoke", "--tag", "a b", "--max-workers", "1", "--", "--with", "retry"])
    assert started == [
        sys.executable, sys.executable, str(run.FLOW), "--config", "config", str(FOLDER / "smoke.toml"),
        "run", "--tag=a b", "--max-workers", "1", "--with", "retry",
    ]  # fmt: skip


def test_keys_that_are_set_change_the_preset_and_nothing_else(started: list[str]) -> None:
    run.main(
        ["--preset", "smoke", "--set", "run.seed=3", "--set", "run.name=mine", "--set", "data.shards=['a']"]
    )
    assert started[3:5] == ["--config-value", "config"]
    found = load_config(started[5])
    changed = differences(
        load_config_file(FOLDER / "smoke.toml").model_dump(mode="json"), found.model_dump(mode="json")
    )
    assert changed == {
        "run.name": ("smoke", "mine"), "run.seed": (0, 3), "data.shards": ([], ["a"]),
    }  # fmt: skip


@pytest.mark.parametrize("preset", presets())
def test_a_dry_run_prints_a_file_of_the_same_meaning(
    preset: str, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--preset", preset, "--dry-run"]) == 0
    assert load_config(capsys.readouterr().out) == load_config_file(FOLDER / f"{preset}.toml")
    assert not started


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "run.sed=3"], "unknown key 'run.sed'; did you mean 'run.seed'?"),
        (["--set", "run.seed"], "expected KEY=VALUE"),
        (["--set", "run.name=1"], "'run.name' should be a valid string"),
        (["--set", "run.name.x=1"], "'name' is a value, not a section"),
        (["--set", "run.seed=-1"], "'run.seed' should be greater than or equal to 0, found -1"),
        (["--config", "smke"], "neither a preset nor a file; did you mean 'smoke'?"),
        (["--config", "/dev/null/x"], "Not a directory"),
    ],
)
def test_what_is_refused_starts_nothing(
    arguments: list[str], said: str, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 1
    assert said in capsys.readouterr().err
    assert not started


def test_a_file_that_is_no_toml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.toml").write_text("[run\n")
    assert run.main(["--config", str(tmp_path / "x.toml")]) == 1
    assert "x.toml is not valid TOML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["resume"]),
        (["student_16"], ["resume", "student_16"]),
        (["--run", "17", "--", "--with", "retry"], ["resume", "--origin-run-id", "17", "--with", "retry"]),
    ],
)
def test_resume_passes_run_step_and_the_rest(
    arguments: list[str], expected: list[str], started: list[str]
) -> None:
    resume.main(arguments)
    assert started[3:] == expected


def test_the_steps_are_the_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.stages import STAGES  # what the steps run, under the same names

    named: Any = set(resume.steps())
    assert {"start", "student_8", "report", "end"} <= named
    assert named - {
        "distillation_inputs",
        "plan_evaluation",
        "evaluation_summary",
        "plan_export",
        "report",
        "end",
        "bundle",
    } <= set(STAGES)
