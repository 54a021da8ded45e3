"""The garbage collector: removes what no kept run refers to, and nothing else."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from artifacts_schema.config import StoreConfig
from artifacts_schema.references import WeightsRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from flows.commands import collect, migrate
from flows.commands.collect import describe, main
from steps.cache import leases
from steps.cache.collector import Collector, Garbage, Retention
from steps.cache.keys import StageKey, cached_stage
from steps.cache.leases import is_free, lease
from steps.cache.notes import mark_use, report_of_run, stage_of_run
from steps.files.errors import DamagedError, StoreError
from steps.store import LocalStore, Store
from steps.store.base import Entry
from tests.conftest import BUCKET, MakeS3

NOW = Retention(min_age_s=-60.0)  # clocks of server and client may differ by a second


def key(stage: str) -> StageKey:
    return StageKey(stage=stage, version=1, config={}, inputs={}, seed=0, extra={})


def train(store: Store, stage: str, weights: str) -> TrainingRecord:
    """The work of a stage."""
    ref = WeightsRef(
        **store.put_bytes(weights.encode()).model_dump(), schema_id="x", config=store.put_bytes(b"{}")
    )
    return TrainingRecord(stage=stage, weights=ref, iterations=1, batch_size=1)


def use(store: Store, run: str, stage: str, origin: str | None = None) -> TrainingRecord:
    """What a run does with a stage."""
    record: TrainingRecord = stage_of_run(
        store, run, key(stage), lambda: train(store, stage, f"weights of {stage}"), origin=origin
    ).record
    return record


def finish(store: Store, run: str, **records: TrainingRecord) -> None:
    """What the report of a run leaves."""
    inputs = {name: record.identity() for name, record in records.items()}
    report = RunReport(stage="report", name=run, smoke=True, inputs=inputs, headline={})
    report_of_run(store, run, report, records.values())


def after_the_search(collector: Collector, action: Callable[[], object]) -> None:
    """Have something happen between the search and the removal."""
    find = collector.find

    def find_then_act() -> Garbage:
        found = find()
        action()
        return found

    collector.find = find_then_act  # type: ignore[method-assign]


def work_on(store: Store, stage: str) -> None:
    """A work folder with a checkpoint, on S3 in the bucket as well."""
    name = f"{stage}/{key(stage).sha256}"
    file = store.work_folder(name) / "checkpoints" / "state.json"
    file.parent.mkdir()
    file.write_text("{}")
    mirror = store.mirror(name)
    if mirror is not None:
        mirror.send("checkpoints/state.json", file)


def objects(store: Store) -> set[str]:
    return {entry.name for entry in store.objects()}


def test_nothing_goes_while_every_run_is_kept(store: Store) -> None:
    finish(store, "1", a=use(store, "1", "a"))
    use(store, "2", "b")  # did not finish, and may be resumed
    before = objects(store), store.list_documents("stages/"), store.list_documents("runs/")
    Collector(store, NOW).remove()
    assert before == (objects(store), store.list_documents("stages/"), store.list_documents("runs/"))


def test_what_only_a_dropped_run_used_goes(store: Store) -> None:
    shared, own, new = use(store, "1", "shared"), use(store, "1", "own"), None
    finish(store, "1", shared=shared, own=own)
    use(store, "2", "shared")
    new = use(store, "2", "new")
    finish(store, "2", shared=shared, new=new)
    orphan = store.put_bytes(b"of no run at all")
    found = Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert found.runs == ["1"]
    assert set(found.objects) == {own.weights.sha256, orphan.sha256}
    assert store.has(shared.weights.sha256)
    assert store.has(new.weights.sha256)
    assert store.list_documents("reports/") == ["reports/2"]
    assert cached_stage(store, key("shared"), lambda: shared).hit
    assert not cached_stage(store, key("own"), lambda: own).hit


def test_searching_removes_nothing(store: Store) -> None:
    finish(store, "1", a=use(store, "1", "a"))
    before = objects(store), store.list_documents("")
    found = Collector(store, Retention(keep_last=0, min_age_s=-60.0)).find()
    assert found.objects
    assert (objects(store), store.list_documents("")) == before


def test_the_newest_runs_are_kept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number, run in enumerate(("3", "1", "2")):
        use(store, run, f"stage-{run}")
        for path in (tmp_path / "documents" / "runs" / run).iterdir():
            os.utime(path, (1e9 + number, 1e9 + number))
    found = Collector(store, Retention(keep_last=2, min_age_s=-60.0)).find()
    assert (found.kept_runs, found.runs) == (["1", "2"], ["3"])


def test_a_run_that_was_resumed_keeps_its_origin(store: Store) -> None:
    first = use(store, "1", "a")
    use(store, "2", "b", origin="1")
    found = Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert found.runs == []
    assert store.has(first.weights.sha256)


def test_what_is_young_stays(store: Store) -> None:
    record = use(store, "1", "a")
    orphan = store.put_bytes(b"on its way into a record")
    found = Collector(store, Retention(keep_last=0, min_age_s=3600.0)).remove()
    assert (found.runs, found.documents, found.objects, found.work) == ([], [], {}, {})
    assert store.has(record.weights.sha256)
    assert store.has(orphan.sha256)


def test_what_a_working_stage_writes_stays_however_old(store: Store) -> None:
    work = store.work_folder("b/123")
    (work / "checkpoint").write_bytes(b"x")
    with lease(store, "stages/b/123"):
        chunk = store.put_bytes(b"first chunk of many")
        found = Collector(store, NOW).remove()
        assert chunk.sha256 not in found.objects
        assert store.has(chunk.sha256)
        assert (work / "checkpoint").is_file()
    assert chunk.sha256 in Collector(store, NOW).remove().objects


def test_a_lease_that_looks_dead_is_watched_before_it_counts_as_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a jump of the clock: every document looks old, and the holder lives."""
    monkeypatch.setattr(leases, "_SILENT_S", -60.0)
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    with lease(store, "stages/b/123"):
        chunk = store.put_bytes(b"first chunk of many")
        Collector(store, NOW).remove()
        assert store.has(chunk.sha256)


def test_a_stage_that_is_used_during_the_removal_stays(store: Store) -> None:
    record = use(store, "1", "a")
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    after_the_search(collector, lambda: use(store, "2", "a"))
    collector.remove()
    assert store.has(record.weights.sha256)
    assert cached_stage(store, key("a"), lambda: record).hit


def test_checkpoints_go_only_when_their_stage_has_finished(store: Store) -> None:
    use(store, "1", "a")
    mark_use(store, "1", key("b"))
    work_on(store, "a")
    work_on(store, "b")
    assert set(Collector(store, NOW).remove().work) == {f"a/{key('a').sha256}"}
    assert [entry.name for entry in store.work()] == [f"b/{key('b').sha256}"]


def test_checkpoints_of_dropped_runs_go(store: Store) -> None:
    mark_use(store, "1", key("a"))
    mark_use(store, "1", key("shared"))
    mark_use(store, "2", key("shared"))
    work_on(store, "a")
    work_on(store, "shared")
    found = Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert set(found.work) == {f"a/{key('a').sha256}"}
    assert [entry.name for entry in store.work()] == [f"shared/{key('shared').sha256}"]


@pytest.mark.parametrize("noted", [True, False], ids=["notes its use", "holds the lease"])
def test_checkpoints_that_a_run_comes_back_to_during_the_removal_stay(store: Store, noted: bool) -> None:
    mark_use(store, "1", key("a"))
    work_on(store, "a")
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    with ExitStack() as stack:

        def come_back() -> None:
            if noted:
                mark_use(store, "2", key("a"))
            else:
                stack.enter_context(lease(store, key("a").document))

        after_the_search(collector, come_back)
        assert collector.remove().work == {}
        assert len(list(store.work())) == 1


def test_a_lease_that_is_taken_during_the_removal_stays(store: Store) -> None:
    document = f"leases/{key('a').document}"
    with lease(store, key("a").document):
        pass
    collector = Collector(store, NOW)
    with ExitStack() as stack:
        after_the_search(collector, lambda: stack.enter_context(lease(store, key("a").document)))
        assert document not in collector.remove().documents
        assert not is_free(store.get_document(document))
    collector = Collector(store, NOW)
    assert document in collector.remove().documents
    assert store.get_document(document) is None


def test_a_report_that_is_written_during_the_removal_keeps_its_records(store: Store) -> None:
    record = use(store, "1", "a")
    finish(store, "1", a=record)
    use(store, "2", "a")
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    name = f"records/{record.identity()}"
    found, looked = threading.Event(), threading.Event()
    put = store.put_document

    def put_and_wait(document: str, text: str) -> None:
        """The run reports while the collector works, but for its last document."""
        if document == "reports/2":
            found.set()
            assert looked.wait(20)
        put(document, text)

    store.put_document = put_and_wait  # type: ignore[method-assign]
    report = threading.Thread(target=lambda: finish(store, "2", a=record))
    after_the_search(collector, lambda: (report.start(), found.wait(20)))
    collector.remove()
    looked.set()
    report.join(20)
    assert store.get_document("reports/2") is not None
    assert store.get_document(name) == record.to_json()


def test_weights_stay_when_a_run_that_bypasses_the_cache_overwrites_their_record(store: Store) -> None:
    first = use(store, "1", "a")
    second: Any = stage_of_run(
        store, "2", key("a"), lambda: train(store, "a", "other weights"), enabled=False
    ).record
    assert first.weights.sha256 != second.weights.sha256
    Collector(store, NOW).remove()
    assert store.has(first.weights.sha256)
    assert store.has(second.weights.sha256)
    Collector(store, Retention(drop=["1"], min_age_s=-60.0)).remove()
    assert not store.has(first.weights.sha256)
    assert store.has(second.weights.sha256)


def test_a_record_that_was_written_anew_during_the_removal_is_not_replaced_by_the_old(store: Store) -> None:
    use(store, "1", "a")
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    delete, new = store.delete_document, train(store, "a", "new weights")

    def delete_then_finish(document: str) -> None:
        delete(document)
        if document == key("a").document:
            stage_of_run(store, "2", key("a"), lambda: new)

    store.delete_document = delete_then_finish  # type: ignore[method-assign]
    collector.remove()
    assert cached_stage(store, key("a"), lambda: train(store, "a", "neither")).record == new
    assert store.has(new.weights.sha256)


def test_a_run_that_is_resumed_during_the_removal_stays(store: Store) -> None:
    record = use(store, "1", "a")
    finish(store, "1", a=record)
    collector = Collector(store, Retention(drop=["1"], min_age_s=-60.0))
    after_the_search(collector, lambda: use(store, "2", "b", origin="1"))
    assert collector.remove().runs == []
    assert store.has(record.weights.sha256)
    assert store.list_documents("reports/") == ["reports/1"]
    assert cached_stage(store, key("a"), lambda: record).hit


@pytest.mark.parametrize(
    ("document", "text"),
    [
        *(
            (name, text)
            for name in ("leases/stages/a/1", "runs/1/a-1", "reports/1")
            for text in ("", "x", "[]")
        ),
        ("champion", ""),
    ],
)
def test_a_damaged_document_stops_the_collector_and_is_named(
    tmp_path: Path, document: str, text: str
) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    store.put_document(document, text)
    with pytest.raises(DamagedError, match=f"document {document} is damaged"):
        Collector(store, NOW).remove()
    assert store.has(ref.sha256)


def test_documents_of_unknown_kinds_stay_with_their_objects(store: Store) -> None:
    ref = store.put_bytes(b"champion")
    store.put_document("champion", ref.model_dump_json())
    Collector(store, NOW).remove()
    assert store.has(ref.sha256)
    assert store.get_document("champion") is not None


def test_partial_files_of_killed_processes_go(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    partial = tmp_path / "objects" / ".partial-abc"
    partial.write_bytes(b"half")
    assert list(Collector(store, NOW).remove().objects) == [partial.name]
    assert not partial.exists()


def test_unfinished_uploads_go_when_they_are_old(make_s3: MakeS3, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = make_s3("uploads/a"), make_s3("uploads/ab")
    name, client = store.bucket.location.key("objects/ab/x"), store.bucket.client
    client.meta.events.register(
        "before-parameter-build.s3.ListMultipartUploads", lambda params, **_: params.update(MaxUploads=1)
    )
    metaflows = store.bucket.location.key("metaflow/data/x")  # below the prefix, and not the store's
    work = store.bucket.location.key("work/a/1/c")
    for key_ in (name, name, work, metaflows, other.bucket.location.key("objects/x")):
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key_)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key_, UploadId=upload, PartNumber=1, Body=b"half")
    assert Collector(store, Retention(min_age_s=3600.0)).remove().objects == {}
    assert main(["--store", store.root]) == 0
    assert "0 objects, 0 partial files or unfinished uploads" in capsys.readouterr().out
    found = Collector(store, NOW).remove()
    assert "0 objects, 3 partial files or unfinished uploads" in describe(found, removed=True)
    assert list(store.objects()) == []
    assert len(list(other.objects())) == 1
    left = client.list_multipart_uploads(Bucket=BUCKET, Prefix=store.bucket.location.key(""))["Uploads"]
    assert [upload["Key"] for upload in left] == [metaflows]
    assert store.delete_object(next(iter(found.objects)))  # gone already, which is no error


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    os.utime(store.path_of(ref), (1e9, 1e9))
    assert main(["--store", str(tmp_path)]) == 0
    assert "would remove 0 runs, 0 documents, 1 objects" in capsys.readouterr().out
    assert store.has(ref.sha256)
    assert main(["--store", str(tmp_path), "--delete"]) == 0
    assert not store.has(ref.sha256)
    for refused in (
        ["--store", str(tmp_path / "none")],
        ["--min-age-hours", "0"],
        ["--min-age-hours", "nan"],
    ):
        with pytest.raises(SystemExit):
            main(refused)


def test_a_run_to_drop_that_there_is_not_stops_before_anything_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = LocalStore(tmp_path)
    ref = store.put_bytes(b"orphan")
    os.utime(store.path_of(ref), (1e9, 1e9))
    with pytest.raises(SystemExit):
        main(["--store", str(tmp_path), "--drop", "17O4", "--delete"])
    assert "--drop names runs that the store does not know: 17O4" in capsys.readouterr().err
    assert store.has(ref.sha256)


@pytest.mark.parametrize("command", [collect, migrate])
def test_commands_find_the_store_where_flows_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: ModuleType
) -> None:
    """Below SNAPFUSION_HOME, whatever the working directory."""
    LocalStore(tmp_path / "home" / StoreConfig().root)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(command, "WORK_ROOT", tmp_path / "home")
    assert command.main([]) == 0
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
def test_a_name_that_arrives_damaged_in_a_list_removes_nothing(store: Store, times: int) -> None:
    """Over plain HTTP: names of what is in use are replaced by names that are not there."""
    record = use(store, "1", "a")
    documents, seen = store.documents, Counter[str]()

    def damaged(prefix: str) -> Iterator[Entry]:
        for entry in documents(prefix):
            seen[entry.name] += 1
            wrong = entry.name.startswith(("stages/", "runs/")) and seen[entry.name] <= times
            yield replace(entry, name=f"{entry.name[:-1]}x") if wrong else entry

    collector = Collector(store, NOW)
    store.documents = damaged  # type: ignore[method-assign]
    if times == 1:
        assert collector.remove().objects == {}
    else:
        with pytest.raises(StoreError, match=r"lists documents that are not there, 5 times: runs/1/a-\w+x"):
            collector.remove()
    assert store.has(record.weights.sha256)


def test_latent_pools_go_when_no_kept_run_has_an_unfinished_decoder(store: Store) -> None:
    pool = store.put_bytes(b"latents and pictures")
    store.put_document("latent_pools/1", pool.model_dump_json())
    mark_use(store, "1", key("decoder_distillation"))
    assert Collector(store, NOW).remove().documents == []
    assert store.has(pool.sha256)
    use(store, "1", "decoder_distillation")
    with lease(store, key("decoder_distillation").document):  # it is done again, with store.cache = false
        assert "latent_pools/1" not in Collector(store, NOW).remove().documents
    removed = Collector(store, NOW).remove()
    assert "latent_pools/1" in removed.documents
    assert list(removed.objects) == [pool.sha256]
