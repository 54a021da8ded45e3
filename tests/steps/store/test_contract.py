"""What every store promises, held against each of them: a local folder, and a real S3 server."""

import threading
from pathlib import Path

import pytest

from artifacts_schema.references import ObjectRef
from steps.files.errors import StoreError
from steps.store import Store, get_bytes, put_folder


def test_same_bytes_are_stored_once(store: Store) -> None:
    first, second = store.put_bytes(b"latent"), store.put_bytes(b"latent")
    assert first == second
    assert [(entry.name, entry.bytes) for entry in store.objects()] == [(first.sha256, 6)]
    assert get_bytes(store, first) == b"latent"


def test_file_and_bytes_are_the_same_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    assert store.put_file(tmp_path / "weights") == store.put_bytes(b"weights")


def test_an_empty_object_can_be_stored(store: Store) -> None:
    assert get_bytes(store, store.put_bytes(b"")) == b""


def test_missing_object_is_named(store: Store) -> None:
    missing = ObjectRef(uri="", sha256="b" * 64, bytes=1)
    assert not store.has(missing.sha256)
    with pytest.raises(StoreError, match="b" * 64):
        store.path_of(missing)


def test_an_object_of_another_size_does_not_count_as_there(store: Store) -> None:
    ref = store.put_bytes(b"latent")
    assert store.has(ref.sha256, 6)
    assert not store.has(ref.sha256, 5)


@pytest.mark.parametrize("sha256", ["", "../" * 21 + "x", "B" * 64])
def test_objects_have_no_other_names_than_hashes(store: Store, sha256: str) -> None:
    with pytest.raises(StoreError, match="expected a SHA-256"):
        store.has(sha256)


@pytest.mark.parametrize("key", ["../outside", "a/../../../outside", "/outside"])
def test_keys_cannot_leave_the_store(store: Store, key: str) -> None:
    for use in (lambda: store.put_document(key, "{}"), lambda: store.work_folder(key)):
        with pytest.raises(StoreError, match="leads out of the store"):
            use()


def test_documents(store: Store) -> None:
    store.put_document("stages/a/1", '{"x": "é"}')
    store.put_document("stages/b/2", "{}")
    assert store.list_documents("stages/a") == ["stages/a/1"]
    assert store.list_documents("") == ["stages/a/1", "stages/b/2"]
    assert store.get_document("stages/a/1") == '{"x": "é"}'
    assert store.get_document("stages/c/3") is None
    store.delete_document("stages/a/1")
    store.delete_document("stages/a/1")
    assert store.get_document("stages/a/1") is None


def test_a_document_can_be_replaced(store: Store) -> None:
    store.put_document("report", "1")
    store.put_document("report", "2")
    assert store.get_document("report") == "2"


def test_swap_needs_what_is_there(store: Store) -> None:
    assert not store.swap_document("champion", "a", "b")
    assert store.swap_document("champion", None, "a")
    assert not store.swap_document("champion", None, "b")
    assert not store.swap_document("champion", "b", "c")
    assert store.swap_document("champion", "a", "b")
    assert store.get_document("champion") == "b"


def test_of_those_that_swap_at_once_one_wins(store: Store) -> None:
    store.swap_document("warm up", None, "x")
    won: list[int] = []
    barrier = threading.Barrier(8)

    def swap(number: int) -> None:
        barrier.wait()
        if store.swap_document("champion", None, f"run {number}"):
            won.append(number)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get_document("champion") == f"run {won[0]}"


def test_folder_round_trip(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "config.json").write_text("{}")
    ref = put_folder(store, tmp_path / "model")
    assert list(ref.files) == ["unet/config.json"]
    assert get_bytes(store, ref.files["unet/config.json"]) == b"{}"


def test_objects_can_be_removed(store: Store) -> None:
    ref = store.put_bytes(b"old")
    store.verify(ref.sha256)
    store.delete_object(ref.sha256)
    store.delete_object(ref.sha256)
    assert not store.has(ref.sha256)
    for read in (lambda: store.path_of(ref), lambda: store.verify(ref.sha256)):
        with pytest.raises(StoreError, match=ref.sha256):
            read()


def test_ages_count_from_the_last_writing(store: Store) -> None:
    store.put_bytes(b"object")
    store.put_document("key", "{}")
    entries = [*store.objects(), *store.documents("")]
    assert len(entries) == 2
    assert all(-2.0 < entry.age_s < 30.0 for entry in entries)  # a server rounds to seconds


def test_check_passes_and_leaves_nothing(store: Store) -> None:
    store.check()
    store.check()
    assert store.list_documents("") == []
    assert list(store.objects()) == []


def test_work_folder_is_local_and_stays(store: Store) -> None:
    folder = store.work_folder("robust_training/abc")
    (folder / "note").write_text("x")
    assert (store.work_folder("robust_training/abc") / "note").read_text() == "x"
