"""The smoke preset as a user runs it, everything in folders: what the commands make of it, and that it is the same run."""

from pathlib import Path

import pytest

from tests.flows.launched import TRAININGS, SmokeRun, printed_command, report, trained_in_one_process


@pytest.mark.long
def test_a_run_in_folders_can_be_drawn_and_traced_and_has_the_same_weights(
    smoke_run: SmokeRun, tmp_path: Path
) -> None:
    home, printed = smoke_run.home, smoke_run.printed
    found = report(home)
    assert f"run {Path(found['folder']).name}" in printed_command("trace", printed, home, tmp_path)
    printed_command("draw", printed, home, tmp_path)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert {name: found["inputs"][name] for name in TRAININGS} == trained_in_one_process(tmp_path / "one")
