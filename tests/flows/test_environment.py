"""The flow starts the same way everywhere."""

from pathlib import Path

import pytest

from flows.environment import absolute_paths, max_workers, with_max_workers


def test_config_path_is_taken_from_where_the_user_stands(tmp_path: Path) -> None:
    arguments = ["--config", "config", "configs/x.toml", "run"]
    assert absolute_paths(arguments, tmp_path) == [
        "--config",
        "config",
        str(tmp_path / "configs/x.toml"),
        "run",
    ]


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (4, 1), (8, 2), (64, 16)])
def test_tasks_do_not_share_a_small_machine(cores: int, expected: int) -> None:
    assert max_workers(cores) == expected


def test_the_users_choice_of_workers_stays() -> None:
    arguments = ["run", "--max-workers", "3"]
    assert with_max_workers(arguments, 2) == arguments
    assert with_max_workers(["resume", "student_8"], 2) == ["resume", "--max-workers", "1", "student_8"]
    assert with_max_workers(["show"], 2) == ["show"]
