"""Hashes of large files: each is read once, and a changed one again."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from steps.files import hashes as file_hashes
from steps.files.errors import DataError
from steps.files.hashes import FileHashes
from steps.files.progress import NullProgress


def settled(path: Path, data: bytes, *, at: int = 1_000_000_000) -> Path:
    """A file that was last changed long ago."""
    path.write_bytes(data)
    os.utime(path, (at, at))
    return path


class Reads(FileHashes):
    """Counts files that were really read."""

    names: list[str]

    def _read(self, path: Path, count: object) -> str:
        self.names = [*getattr(self, "names", []), path.name]
        return super()._read(path, count)  # type: ignore[arg-type]


def read(folder: Path, *paths: Path) -> tuple[list[str], list[str]]:
    """Hashes, and the names of the files that were read for them, by a fresh process."""
    hashes = Reads(folder / "hashes")
    return hashes.of(paths), getattr(hashes, "names", [])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_unchanged_file_is_read_once(tmp_path: Path) -> None:
    a, b = settled(tmp_path / "a", b"aaa"), settled(tmp_path / "b", b"bbb")
    assert read(tmp_path, a) == ([sha(b"aaa")], ["a"])
    assert read(tmp_path, b, a) == ([sha(b"bbb"), sha(b"aaa")], ["b"])
    assert read(tmp_path, a, b) == ([sha(b"aaa"), sha(b"bbb")], [])


@pytest.mark.parametrize("changed", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, changed: str) -> None:
    path = settled(tmp_path / "a", b"aaa")
    read(tmp_path, path)
    data = b"bbbb" if changed == "size" else b"bbb"
    if changed == "inode":
        settled(tmp_path / "new", data).replace(path)
    else:
        settled(path, data, at=1_000_000_001 if changed == "time" else 1_000_000_000)
    assert read(tmp_path, path) == ([sha(data)], ["a"])


def test_an_edit_with_restored_times_is_seen(tmp_path: Path) -> None:
    """Same size, same inode, and the time of its last change set back."""
    path = settled(tmp_path / "a", b"aaa")
    read(tmp_path, path)
    before = path.stat()
    time.sleep(0.05)  # longer than a tick of the file system's clock
    settled(path, b"bbb")
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    assert read(tmp_path, path) == ([sha(b"bbb")], ["a"])


def test_a_file_that_may_still_be_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"aaa")
    assert read(tmp_path, path)[1] == read(tmp_path, path)[1] == ["a"]


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settled(tmp_path / "a", b"aaa")

    class Writer(NullProgress):
        def update(self, done: int, **metrics: float) -> None:
            path.write_bytes(b"longer than before")

    monkeypatch.setattr(file_hashes, "_LONG_BYTES", 0)
    with pytest.raises(DataError, match="changed while it was read"):
        FileHashes(tmp_path / "hashes", Writer).of([path])


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    path = settled(tmp_path / "a", b"aaa")
    read(tmp_path, path)
    (note,) = (tmp_path / "hashes").iterdir()
    for text in ("", "[]", "{}", '"x"'):
        note.write_text(text)
        assert read(tmp_path, path) == ([sha(b"aaa")], ["a"])


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hashes").touch()
    path = settled(tmp_path / "a", b"aaa")
    assert read(tmp_path, path)[0] == [sha(b"aaa")]
    assert "cannot be remembered" in caplog.text


def test_progress_is_shown_when_much_is_read_and_not_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shown = settled(tmp_path / "a", bytes(3 << 20)), []

    class Shown(NullProgress):
        def start(self, description: str, total: int) -> None:
            shown.append(total)

        def update(self, done: int, **metrics: float) -> None:
            shown.append(done)

    FileHashes(tmp_path / "first", Shown).of([path])
    assert shown == []
    monkeypatch.setattr(file_hashes, "_LONG_BYTES", 1 << 20)
    for _ in range(2):
        FileHashes(tmp_path / "second", Shown).of([path])
    assert shown == [3, 3]
