"""Sealed files: what is read is what was written, or the damage is said."""

from pathlib import Path

import pytest

from steps.files.errors import DamagedError
from steps.files.sealed import read_sealed, write_sealed
from tests.steps.store.test_disk_faults import child

CONTENT = {"iteration": 39, "state": {"sums": {"loss": 1.25, "rate": 1e-05}, "curve": [], "note": None}}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_sealed(path, CONTENT)
    assert read_sealed(path) == CONTENT
    write_sealed(path, {"pair": (1, float("inf")), "by number": {1: 2}})
    assert read_sealed(path) == {"pair": [1, float("inf")], "by number": {"1": 2}}
    assert [item.name for item in path.parent.iterdir()] == ["state.json"]


def test_no_wrong_bit_is_used(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_sealed(path, CONTENT)
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
            try:
                assert read_sealed(path) == CONTENT  # 1E-05 for 1e-05
            except DamagedError:
                continue


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "{}", '{"iteration": 39}'])
def test_anything_else_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(DamagedError, match="state.json"):
        read_sealed(path)


def test_a_missing_file_is_not_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "state.json")


def test_a_full_disk_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_sealed(path, CONTENT)
    code = (
        "from pathlib import Path; from steps.files.errors import DiskFullError; from steps.files.sealed import write_sealed\n"
        f"try:\n    write_sealed(Path({str(path)!r}), {{'long': 'x' * (2 << 20)}})\n"
        "except DiskFullError as error:\n    print(error)"
    )
    assert f"no space left for state.json in {tmp_path}; free some and resume" in child(
        code, file_limit=1 << 20
    )
    assert read_sealed(path) == CONTENT
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]
