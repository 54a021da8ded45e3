"""The local store: content addressing, verification, atomic writes."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steps.files.errors import DamagedError, DiskFullError, StoreError
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


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{}", b'{"seal": "0", "document": {}}\n'])
def test_a_document_without_its_seal_is_damaged(store: LocalStore, data: bytes) -> None:
    store.put_document("stages/a/1", "{}")
    (store.folder / "documents/stages/a/1.json").write_bytes(data)
    with pytest.raises(DamagedError, match="document stages/a/1 is damaged"):
        store.get_document("stages/a/1")
    assert not store.swap_document("stages/a/1", "{}", "[]")
    assert store.swap_document("stages/a/1", None, "[]")  # it counts as none
    assert store.get_document("stages/a/1") == "[]"


def test_no_wrong_bit_of_a_document_is_believed_nor_one_under_another_name(store: LocalStore) -> None:
    text = '{"clip_score": 0.566}'
    store.put_document("reports/1", text)
    path = store.folder / "documents/reports/1.json"
    good = path.read_bytes()
    assert json.loads(good)["document"] == json.loads(text)  # JSON still, for people
    for position in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
            with pytest.raises(DamagedError, match="document reports/1 is damaged"):
                store.get_document("reports/1")
    path.rename(path.with_name("2.json")).write_bytes(good)
    with pytest.raises(DamagedError, match="document reports/2 is damaged"):
        store.get_document("reports/2")


def test_a_sector_that_cannot_be_read_is_damage(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.put_bytes(b"weights")

    def fail(*_: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("steps.store.local.file_sha256", fail)
    with pytest.raises(DamagedError, match="Input/output error"):
        store.path_of(ref)


def test_a_document_is_on_the_disk_before_it_has_its_name(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = store.folder / "documents/stages/a/1.json"
    flushed: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{handle}")), final.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    store.put_document("stages/a/1", "{}")
    (partial, named), (folder, renamed) = flushed
    assert partial.name.startswith(".partial-")
    assert folder == final.parent
    assert (named, renamed) == (False, True)


def test_the_folder_of_an_object_is_on_the_disk_after_the_rename(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("steps.store.local.sync", synced.append)
    ref = store.put_bytes(b"weights")
    assert synced == [store.path_of(ref).parent]


def test_a_cache_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fsync")
    LocalStore(tmp_path, durable=False).put_document("key", "{}")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_documents_have_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        store = LocalStore(tmp_path / "store")
        store.put_document("key", "{}")
        store.swap_document("swapped", None, "{}")
    finally:
        os.umask(before)
    for name in ("layout.json", "documents/key.json", "documents/swapped.json"):
        assert stat.S_IMODE((store.folder / name).stat().st_mode) == mode


@pytest.fixture
def nobody() -> Iterator[Callable[[], None]]:
    """What turns this process into one of another user, until the end of the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users reach; pytest's own they do not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_another_user_of_the_machine_reads_the_store(public: Path, nobody: Callable[[], None]) -> None:
    store = LocalStore(public / "store")
    ref = store.put_bytes(b"weights")
    store.put_document("key", "{}")
    nobody()
    store = LocalStore(public / "store")
    assert store.get_document("key") == "{}"
    assert store.path_of(ref).read_bytes() == b"weights"
    with pytest.raises(StoreError, match="cannot write to the store"):
        store.put_document("key", "[]")


def test_what_a_user_may_not_read_is_a_clear_error(public: Path, nobody: Callable[[], None]) -> None:
    store = LocalStore(public / "store")
    ref = store.put_bytes(b"weights")
    store.put_document("key", "{}")
    (store.folder / "documents/key.json").chmod(0o600)
    (store.folder / "objects").chmod(0o700)
    nobody()
    for read in (
        lambda: store.get_document("key"),
        lambda: store.path_of(ref),
        lambda: store.has(ref.sha256),
    ):
        with pytest.raises(StoreError, match=r"cannot read .*Permission denied; .* user 65534 may read"):
            read()


def test_disk_full_leaves_nothing_behind(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no space left"):
        store.put_bytes(b"weights")
    assert object_files(store) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"version": 1}',
            "has layout version 1, this program reads 2; name another store.root, or remove this store",
        ),
        (
            '{"version": 99}',
            "has layout version 99, this program reads 2; use a version of this program that reads 99",
        ),
        ("", "must name a version"),
        ('{"version": "x"}', "must name a version"),
        ("[]", "must name a version"),
    ],
    ids=["older", "newer", "empty", "no number", "no object"],
)
def test_a_store_of_another_layout_is_refused_and_left_alone(
    store: LocalStore, text: str, message: str
) -> None:
    (store.folder / "layout.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        LocalStore(store.folder)
    assert (store.folder / "layout.json").read_text() == text
