"""The garbage collector: removes what no kept run refers to, and nothing else, and not while anybody works."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from artifacts_schema.champion import ChampionEvent, ChampionHistory
from artifacts_schema.data import EncodedShard, Shard
from artifacts_schema.references import WeightsRef
from artifacts_schema.report import RunReport
from artifacts_schema.training import TrainingRecord
from steps.cache.collector import Garbage, Retention, find_garbage, find_in_cache, remove
from steps.cache.keys import StageKey, cached_stage
from steps.cache.leases import in_use
from steps.cache.notes import mark_use, report_of_run, stage_of_run
from steps.files.errors import DamagedError, StoreError
from steps.store import LocalStore, Store
from steps.store.base import Entry
from tests.conftest import BUCKET, MakeS3

NOW = Retention(min_age_s=-60.0)  # clocks of server and client may differ by a second
WITHOUT_1 = Retention(drop=["1"], min_age_s=-60.0)


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


def collect(store: Store, retention: Retention = NOW) -> Garbage:
    return remove(store, lambda: find_garbage(store, retention))


def test_nothing_goes_while_every_run_is_kept(store: Store) -> None:
    finish(store, "1", a=use(store, "1", "a"))
    use(store, "2", "b")  # did not finish, and may be resumed
    before = objects(store), store.list_documents("stages/"), store.list_documents("runs/")
    collect(store)
    assert before == (objects(store), store.list_documents("stages/"), store.list_documents("runs/"))


def check_what_only_a_dropped_run_used_goes(store: Store) -> None:
    shared, own = use(store, "1", "shared"), use(store, "1", "own")
    finish(store, "1", shared=shared, own=own)
    use(store, "2", "shared")
    new = use(store, "2", "new")
    finish(store, "2", shared=shared, new=new)
    orphan = store.put_bytes(b"of no run at all")
    found = find_garbage(store, WITHOUT_1)
    assert set(found.objects) == {own.weights.sha256, orphan.sha256}
    assert store.has(orphan.sha256)  # looking removes nothing
    assert set(collect(store, WITHOUT_1).objects) == set(found.objects)
    assert found.runs == ["1"]
    assert store.has(shared.weights.sha256)
    assert store.has(new.weights.sha256)
    assert store.list_documents("reports/") == ["reports/2"]
    assert store.list_documents("leases/stages/") == []
    assert cached_stage(store, key("shared"), lambda: shared).hit
    assert not cached_stage(store, key("own"), lambda: own).hit


def test_what_only_a_dropped_run_used_goes(store: Store) -> None:
    check_what_only_a_dropped_run_used_goes(store)


def test_what_only_a_dropped_run_used_goes_on_s3(make_s3: MakeS3) -> None:
    check_what_only_a_dropped_run_used_goes(make_s3())


def test_the_newest_runs_are_kept(store: LocalStore) -> None:
    for number, run in enumerate(("3", "1", "2")):
        use(store, run, f"stage-{run}")
        for path in (store.folder / "documents" / "runs" / run).iterdir():
            os.utime(path, (1e9 + number, 1e9 + number))
    found = find_garbage(store, Retention(keep_last=2, min_age_s=-60.0))
    assert (found.kept_runs, found.runs) == (["1", "2"], ["3"])


def test_a_run_that_was_resumed_keeps_its_origin(store: Store) -> None:
    first = use(store, "1", "a")
    use(store, "2", "b", origin="1")
    assert collect(store, WITHOUT_1).runs == []
    assert store.has(first.weights.sha256)


def test_what_is_young_stays(store: Store) -> None:
    """Also that of a run between two of its stages, which holds nothing then."""
    record = use(store, "1", "a")
    orphan = store.put_bytes(b"on its way into a record")
    found = collect(store, Retention(keep_last=0, drop=["1"], min_age_s=3600.0))
    assert (found.runs, found.documents, found.objects, found.work) == ([], [], {}, {})
    assert store.has(record.weights.sha256)
    assert store.has(orphan.sha256)


@pytest.mark.parametrize("work", ["a stage of a run", "draw"])
def test_nothing_goes_while_anything_works(store: Store, work: str) -> None:
    orphan = store.put_bytes(b"first chunk of many")

    def look() -> None:
        with pytest.raises(StoreError, match=r"not now: .* in use.*(a of run 1|draw) on host"):
            collect(store)

    def stage() -> TrainingRecord:
        look()
        return train(store, "a", "weights")

    if work == "draw":
        with in_use(store, "draw"):
            look()
    else:
        stage_of_run(store, "1", key("a"), stage)
    assert store.has(orphan.sha256)
    assert set(collect(store).objects) == {orphan.sha256}


def test_a_collector_that_was_stopped_removes_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    orphan, time_s = store.put_bytes(b"orphan"), [0.0]
    monkeypatch.setattr("steps.cache.leases.now", lambda: time_s[0])

    def find_and_stop() -> Garbage:
        found = find_garbage(store, NOW)
        time_s[0] = 100.0
        return found

    with pytest.raises(StoreError, match="was not renewed in time"):
        remove(store, find_and_stop)
    assert store.has(orphan.sha256)


def test_checkpoints_go_only_when_their_stage_has_finished(store: Store) -> None:
    use(store, "1", "a")
    mark_use(store, "1", key("b"))
    work_on(store, "a")
    work_on(store, "b")
    assert set(collect(store).work) == {f"a/{key('a').sha256}"}
    assert [entry.name for entry in store.work()] == [f"b/{key('b').sha256}"]


def test_checkpoints_of_dropped_runs_go(store: Store) -> None:
    for run, stage in (("1", "a"), ("1", "shared"), ("2", "shared")):
        mark_use(store, run, key(stage))
    work_on(store, "a")
    work_on(store, "shared")
    assert set(collect(store, WITHOUT_1).work) == {f"a/{key('a').sha256}"}
    assert [entry.name for entry in store.work()] == [f"shared/{key('shared').sha256}"]


def test_weights_stay_when_a_run_that_bypasses_the_cache_overwrites_their_record(store: Store) -> None:
    first = use(store, "1", "a")
    second: Any = stage_of_run(
        store, "2", key("a"), lambda: train(store, "a", "other weights"), enabled=False
    ).record
    assert first.weights.sha256 != second.weights.sha256
    collect(store)
    assert store.has(first.weights.sha256)
    assert store.has(second.weights.sha256)
    collect(store, WITHOUT_1)
    assert not store.has(first.weights.sha256)
    assert store.has(second.weights.sha256)


@pytest.mark.parametrize("document", ["runs/1/a-1", "reports/1", "champion"])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_damaged_document_stops_the_collector_and_is_named(
    store: LocalStore, document: str, is_sealed: bool
) -> None:
    ref = store.put_bytes(b"orphan")
    store.put_document(document, "no JSON" if is_sealed else "{}")
    if not is_sealed:
        (store.folder / "documents" / f"{document}.json").write_text("{}")
    with pytest.raises(DamagedError, match=f"document {document} is damaged"):
        collect(store)
    assert store.has(ref.sha256)


def test_documents_of_unknown_kinds_stay_with_their_objects(store: Store) -> None:
    ref = store.put_bytes(b"champion")
    store.put_document("champion", ref.model_dump_json())
    collect(store)
    assert store.has(ref.sha256)
    assert store.get_document("champion") is not None


def test_partial_files_of_killed_processes_go(store: LocalStore) -> None:
    partial = store.folder / "objects" / ".partial-abc"
    partial.write_bytes(b"half")
    assert list(collect(store).objects) == [partial.name]
    assert not partial.exists()


def test_unfinished_uploads_go_when_they_are_old(make_s3: MakeS3) -> None:
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
    assert collect(store, Retention(min_age_s=3600.0)).objects == {}
    found = collect(store).objects
    assert len(found) == 3
    assert list(store.objects()) == []
    assert len(list(other.objects())) == 1
    left = client.list_multipart_uploads(Bucket=BUCKET, Prefix=store.bucket.location.key(""))["Uploads"]
    assert [upload["Key"] for upload in left] == [metaflows]
    store.delete_object(next(iter(found)))  # gone already, which is no error


@pytest.mark.parametrize("times", [1, 1000], ids=["once", "always"])
def test_a_name_that_arrives_damaged_in_a_list_removes_nothing(store: LocalStore, times: int) -> None:
    """Over plain HTTP: names of what is in use are replaced by names that are not there."""
    record = use(store, "1", "a")
    documents, seen = store.documents, Counter[str]()

    def damaged(prefix: str) -> Iterator[Entry]:
        for entry in documents(prefix):
            seen[entry.name] += 1
            wrong = entry.name.startswith(("stages/", "runs/")) and seen[entry.name] <= times
            yield replace(entry, name=f"{entry.name[:-1]}x") if wrong else entry

    store.documents = damaged  # type: ignore[method-assign]
    if times == 1:
        assert collect(store).objects == {}
    else:
        with pytest.raises(StoreError, match=r"lists documents that are not there, 5 times: \w+/.*x"):
            collect(store)
    assert store.has(record.weights.sha256)


def test_latent_pools_go_when_no_kept_run_has_an_unfinished_decoder(store: Store) -> None:
    pool = store.put_bytes(b"latents and pictures")
    store.put_document("latent_pools/1", pool.model_dump_json())
    mark_use(store, "1", key("decoder_distillation"))
    assert collect(store).documents == []
    assert store.has(pool.sha256)
    use(store, "1", "decoder_distillation")
    removed = collect(store)
    assert "latent_pools/1" in removed.documents
    assert list(removed.objects) == [pool.sha256]


def test_encoded_shards_stay_while_a_start_is_unfinished_or_data_hold_them(store: Store) -> None:
    refs = [store.put_bytes(name.encode()) for name in ("used", "left", "beside used")]
    for number, split in enumerate(({"train": refs[0], "test": refs[2]}, {"train": refs[1]})):
        shards = {name: Shard(object=ref, rows=1) for name, ref in split.items()}
        store.put_document(f"encoded_shards/{number}", EncodedShard(splits=shards).model_dump_json())
    mark_use(store, "1", key("start"))
    assert collect(store).documents == []
    record = train(store, "start", "used")  # names the object, as a plan does
    stage_of_run(store, "1", key("start"), lambda: record)
    removed = collect(store)
    assert "encoded_shards/1" in removed.documents and "encoded_shards/0" not in removed.documents
    assert list(removed.objects) == [refs[1].sha256]


def test_the_cache_of_a_store_on_s3_is_cleared_alone(make_s3: MakeS3) -> None:
    store = make_s3()
    use(store, "1", "finished")
    mark_use(store, "1", key("unfinished"))
    for stage in ("finished", "unfinished", "of no run"):
        work_on(store, stage)
    ref = store.put_bytes(b"weights")
    before = objects(store), store.list_documents("runs/"), store.list_documents("stages/")

    def clear(min_age_s: float) -> Garbage:
        return remove(store.cache, lambda: find_in_cache(store, Retention(min_age_s=min_age_s)))

    with in_use(store, "draw"), pytest.raises(StoreError, match="not now: .*draw on host"):
        clear(-60.0)
    assert (clear(3600.0).objects, clear(3600.0).work) == ({}, {})
    gone = clear(-60.0)
    assert ref.sha256 in gone.objects
    assert set(gone.work) == {f"{stage}/{key(stage).sha256}" for stage in ("finished", "of no run")}
    assert list(store.cache.objects()) == []
    assert len(list(store.work())) == 3  # in the bucket
    assert before == (objects(store), store.list_documents("runs/"), store.list_documents("stages/"))
    assert store.path_of(ref).read_bytes() == b"weights"  # fetched again


def test_champions_stay_until_they_are_dropped_and_the_present_one_in_any_case(store: LocalStore) -> None:
    for run in ("1", "2", "3", "4"):
        finish(store, run, robust_training=use(store, run, f"stage_{run}"))
    events = [ChampionEvent(id=run, event="promoted", run=run, replaced=None, at="") for run in ("1", "2")]
    store.put_document("registry/champion", ChampionHistory(events=tuple(events)).to_json())
    newest = Retention(keep_last=0, min_age_s=-60.0)
    assert find_garbage(store, newest).kept_runs == ["1", "2"]
    assert find_garbage(store, replace(newest, drop=["1", "2"])).kept_runs == ["2"]
