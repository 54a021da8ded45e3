"""The local store: content addressing, verification, atomic writes."""

import errno
import os
from pathlib import Path

import pytest

from steps.errors import DiskFullError, StoreError
from steps.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def object_files(store: LocalStore) -> list[Path]:
    return [path for path in (store.folder / "objects").rglob("*") if path.is_file()]


def test_damaged_object_is_never_used(store: LocalStore) -> None:
    ref = store.put_bytes(b"weights")
    path = store.path_of(ref)
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    with pytest.raises(StoreError, match=ref.sha256):
        store.path_of(ref)


def test_disk_full_leaves_nothing_behind(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left"):
        store.put_bytes(b"weights")
    assert object_files(store) == []


def test_newer_layout_is_refused(store: LocalStore) -> None:
    (store.folder / "layout.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="layout version 99"):
        LocalStore(store.folder)
