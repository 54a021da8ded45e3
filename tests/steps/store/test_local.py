"""The local store: content addressing, verification, atomic writes."""

import errno
import os
from pathlib import Path

import pytest

from artifacts_schema.references import ObjectRef
from steps.errors import DiskFullError, StoreError
from steps.store import LocalStore, get_bytes, put_folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def object_files(store: LocalStore) -> list[Path]:
    return [path for path in (store.folder / "objects").rglob("*") if path.is_file()]


def test_same_bytes_are_stored_once(store: LocalStore) -> None:
    first, second = store.put_bytes(b"latent"), store.put_bytes(b"latent")
    assert first == second
    assert len(object_files(store)) == 1
    assert get_bytes(store, first) == b"latent"


def test_damaged_object_is_never_used(store: LocalStore) -> None:
    ref = store.put_bytes(b"weights")
    path = store.path_of(ref)
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    with pytest.raises(StoreError, match=ref.sha256):
        store.path_of(ref)


def test_missing_object_is_named(store: LocalStore) -> None:
    with pytest.raises(StoreError, match="b" * 64):
        store.path_of(ObjectRef(uri="", sha256="b" * 64, bytes=1))


def test_disk_full_leaves_nothing_behind(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left"):
        store.put_bytes(b"weights")
    assert object_files(store) == []


@pytest.mark.parametrize("key", ["../outside", "a/../../../outside"])
def test_keys_cannot_leave_the_store(store: LocalStore, key: str) -> None:
    with pytest.raises(StoreError, match="leads out of the store"):
        store.put_document(key, "{}")


def test_documents(store: LocalStore) -> None:
    store.put_document("stages/a/1", "{}")
    store.put_document("stages/b/2", "{}")
    assert store.list_documents("stages/a") == ["stages/a/1"]
    assert store.get_document("stages/c/3") is None


def test_folder_round_trip(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "config.json").write_text("{}")
    ref = put_folder(store, tmp_path / "model")
    assert list(ref.files) == ["unet/config.json"]
    assert get_bytes(store, ref.files["unet/config.json"]) == b"{}"


def test_newer_layout_is_refused(store: LocalStore) -> None:
    (store.folder / "layout.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="layout version 99"):
        LocalStore(store.folder)
