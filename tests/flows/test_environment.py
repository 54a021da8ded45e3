"""The flow starts the same way everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.environment import absolute_paths, max_workers, threads_per_task, with_max_workers


def test_config_path_is_taken_from_where_the_user_stands(tmp_path: Path) -> None:
    arguments = ["--config", "config", "configs/x.toml", "run"]
    assert absolute_paths(arguments, tmp_path) == [
        "--config",
        "config",
        str(tmp_path / "configs/x.toml"),
        "run",
    ]


@pytest.mark.parametrize(
    ("cores", "workers", "threads"), [(1, 1, 1), (2, 2, 1), (4, 3, 1), (8, 3, 2), (64, 3, 21)]
)
def test_tasks_share_out_the_cores(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)  # no GPU
    assert (max_workers(cores), threads_per_task(cores)) == (workers, threads)


def test_tasks_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert (max_workers(64), threads_per_task(64)) == (1, 64)


def test_the_users_choice_of_workers_stays() -> None:
    arguments = ["run", "--max-workers", "3"]
    assert with_max_workers(arguments, 2) == arguments
    assert with_max_workers(["resume", "student_8"], 2) == [
        "resume",
        "--max-workers",
        str(max_workers(2)),
        "student_8",
    ]
    assert with_max_workers(["show"], 2) == ["show"]


def test_temporary_files_need_no_room_in_the_systems_folder(tmp_path: Path) -> None:
    """Those of every library, here and in the tasks; what was left there long ago goes."""
    left, used = (tmp_path / ".snapfusion" / "tmp" / name for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    code = (
        "import os, tempfile; tempfile.gettempdir(); from flows.environment import prepare_paths; prepare_paths()\n"
        "print(tempfile.gettempdir(), os.environ['TMPDIR'])"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SNAPFUSION_HOME": str(tmp_path), "TMPDIR": "/dev/full", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(tmp_path / ".snapfusion" / "tmp")] * 2
    assert not left.exists()
    assert used.exists()
