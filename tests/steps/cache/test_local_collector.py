"""This machine's cache of a store on S3: what was not used for long goes, and nothing of the store."""

import os
import time
from pathlib import Path

import pytest

from flows.commands.collect import main
from steps.cache.collector import Garbage, Retention
from steps.cache.leases import lease
from steps.cache.local_collector import CacheCollector
from steps.cache.notes import mark_use
from steps.store import LocalStore
from steps.store.s3 import S3Store
from tests.conftest import MakeS3
from tests.flows.commands.test_collect import key, objects, use, work_on


def clear(store: S3Store, min_age_s: float = -60.0) -> Garbage:
    return CacheCollector(store, store.local, Retention(min_age_s=min_age_s)).remove()


def test_objects_are_removed_here_and_fetched_again(make_s3: MakeS3) -> None:
    store = make_s3()
    ref = store.put_bytes(b"weights")
    assert set(clear(store).objects) == {ref.sha256}
    assert list(store.local.objects()) == []
    assert store.path_of(ref).read_bytes() == b"weights"


def test_what_was_read_lately_stays(make_s3: MakeS3) -> None:
    store = make_s3()
    read, unread = store.put_bytes(b"read"), store.put_bytes(b"not read")
    time.sleep(1.5)
    store.path_of(read)
    assert set(clear(store, 1.0).objects) == {unread.sha256}


def test_a_file_of_long_ago_that_was_stored_lately_stays_and_keeps_its_time(
    make_s3: MakeS3, tmp_path: Path
) -> None:
    store, path = make_s3(), tmp_path / "base"
    path.write_bytes(b"weights")
    os.utime(path, (1e9, 1e9))
    store.path_of(store.put_file(path))
    assert clear(store, 3600.0).objects == {}
    assert path.stat().st_mtime == 1e9


def test_what_a_working_stage_uses_stays(make_s3: MakeS3) -> None:
    store = make_s3()
    work_on(store, "a")
    with lease(store, key("a").document):
        ref = store.put_bytes(b"weights")
        assert (clear(store).objects, clear(store).work) == ({}, {})
    assert set(clear(store).objects) == {ref.sha256}


def test_work_folders_go_unless_a_run_may_go_on_from_them(make_s3: MakeS3) -> None:
    store = make_s3()
    use(store, "1", "finished")
    mark_use(store, "1", key("unfinished"))
    for stage in ("finished", "unfinished", "of no run"):
        work_on(store, stage)
    gone = {f"{stage}/{key(stage).sha256}" for stage in ("finished", "of no run")}
    before = objects(store), store.list_documents("runs/"), store.list_documents("stages/")
    assert set(clear(store).work) == gone
    assert {entry.name for entry in store.local.work()} == {f"unfinished/{key('unfinished').sha256}"}
    assert len(list(store.work())) == 3  # in the bucket
    assert before == (objects(store), store.list_documents("runs/"), store.list_documents("stages/"))


def test_command_line(make_s3: MakeS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_s3()
    (tmp_path / "cache" / "objects" / ".partial-x").write_bytes(b"half")
    options = ["--store", store.root, "--local", str(tmp_path / "cache"), "--cache"]
    assert main([*options, "--delete"]) == 0
    assert "removed 0 runs, 0 documents, 0 objects, 0 partial files" in capsys.readouterr().out
    LocalStore(tmp_path / "store")
    for refused in (["--store", str(tmp_path / "store"), "--cache"], [*options, "--drop", "1"]):
        with pytest.raises(SystemExit):
            main(refused)
