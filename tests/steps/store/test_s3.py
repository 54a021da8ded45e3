"""What is special about the S3 store, against a real server: transfers, the local cache, clear errors, encryption."""

import os
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.references import ObjectRef
from artifacts_schema.run_configs import StoreConfig
from infra.local.fault_proxy import FaultPlan, fault_proxy
from infra.local.seaweedfs import Identity, Server, free_ports
from steps.cache.keys import cached_stage
from steps.files.errors import ConfigError, DamagedError, StoreError
from steps.store import LocalStore, get_bytes, open_store, s3_bucket, s3_client
from steps.store.s3 import S3Store
from steps.store.s3_client import Location
from tests.conftest import BUCKET, READER, RUNNER, MakeS3
from tests.steps.cache.test_keys import Stage
from tests.steps.cache.test_keys import key as stage_key


def use(monkeypatch: pytest.MonkeyPatch, server: Server, identity: Identity) -> None:
    for name, value in server.environment(identity).items():
        monkeypatch.setenv(name, value)


def overwrite(store: S3Store, ref: ObjectRef, data: bytes) -> None:
    """Change an object behind the store's back."""
    key = store.bucket.location.key(f"objects/{ref.sha256[:2]}/{ref.sha256}")
    store.bucket.client.put_object(Bucket=BUCKET, Key=key, Body=data)


def test_large_file_goes_there_and_back_in_parts(make_s3: MakeS3, tmp_path: Path) -> None:
    data = os.urandom(40 << 20)  # three parts
    (tmp_path / "weights").write_bytes(data)
    here = make_s3("large", local="here")
    ref = here.put_file(tmp_path / "weights")
    there = make_s3("large", local="there")
    assert there.path_of(ref).read_bytes() == data
    head = here.bucket.client.head_object(
        Bucket=BUCKET, Key=here.bucket.location.key(f"objects/{ref.sha256[:2]}/{ref.sha256}")
    )
    assert head["ETag"].strip('"').endswith("-3")


def test_large_transfers_show_their_progress(
    make_s3: MakeS3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s3_bucket, "SHOWN_BYTES", 1000)
    ref = make_s3("progress", local="a").put_bytes(b"x" * 2000)
    make_s3("progress", local="b").path_of(ref)
    shown = capsys.readouterr().err
    assert "upload: 100%" in shown
    assert "download: 100%" in shown


def test_an_object_is_downloaded_once(make_s3: MakeS3) -> None:
    ref = make_s3("once", local="a").put_bytes(b"weights")
    store = make_s3("once", local="b")
    path = store.path_of(ref)
    store.delete_object(ref.sha256)
    store.local.put_bytes(b"weights")
    assert store.path_of(ref) == path  # the server has it no more


def test_damaged_cache_is_fetched_again(make_s3: MakeS3, caplog: pytest.LogCaptureFixture) -> None:
    store = make_s3()
    ref = store.put_bytes(b"weights")
    path = store.path_of(ref)
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    assert get_bytes(store, ref) == b"weights"
    assert "damaged" in caplog.text


def test_a_file_that_is_changed_after_it_was_stored_changes_no_object(
    make_s3: MakeS3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, path = make_s3(), tmp_path / "weights"
    path.write_bytes(b"weights")
    ref = store.put_file(path)
    assert store.path_of(ref).stat().st_ino == path.stat().st_ino  # not copied
    path.write_bytes(b"changed in place")
    assert get_bytes(store, ref) == b"weights"
    assert "fetching it again" in caplog.text
    assert path.read_bytes() == b"changed in place"


def test_object_damaged_on_the_server_is_never_used(make_s3: MakeS3) -> None:
    store = make_s3("damaged", local="a")
    ref = store.put_bytes(b"weights")
    overwrite(store, ref, b"weightz")
    other = make_s3("damaged", local="b")
    place = f"s3://{BUCKET}/damaged/objects/{ref.sha256[:2]}/{ref.sha256}"
    with pytest.raises(DamagedError, match=f"delete {place} and rerun the stage that made it"):
        other.path_of(ref)
    assert list(other.local.objects()) == []


def test_who_found_an_object_damaged_sends_it_again_however_young_it_is(make_s3: MakeS3) -> None:
    ref = make_s3("found", local="a").put_bytes(b"weights")
    overwrite(make_s3("found", local="a"), ref, b"weightz")
    store = make_s3("found", local="b")
    with pytest.raises(DamagedError):
        store.path_of(ref)
    assert not store.has(ref.sha256)
    store.put_bytes(b"weights")
    assert store.has(ref.sha256)
    assert get_bytes(make_s3("found", local="c"), ref) == b"weights"


def test_object_cut_short_on_the_server_is_stored_again(make_s3: MakeS3) -> None:
    store = make_s3("short", local="a")
    ref = store.put_bytes(b"weights")
    overwrite(store, ref, b"wei")
    store.put_bytes(b"weights")
    assert get_bytes(make_s3("short", local="b"), ref) == b"weights"


def test_a_record_whose_object_was_cut_short_on_the_server_is_a_miss(make_s3: MakeS3) -> None:
    store = make_s3("short-record", local="a")
    stage = Stage(store)
    weights = cached_stage(store, stage_key(), stage).record.weights
    overwrite(store, weights, b"wei")
    assert not cached_stage(make_s3("short-record", local="b"), stage_key(), stage).hit
    assert get_bytes(make_s3("short-record", local="c"), weights) == b"weights"


def test_document_damaged_on_the_server_is_never_used(make_s3: MakeS3) -> None:
    store = make_s3()
    store.put_document("stages/a/1", '{"lr": 1}')
    name = store.bucket.location.key("documents/stages/a/1.json")
    body = store.bucket.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    store.bucket.client.put_object(Bucket=BUCKET, Key=name, Body=body.replace(b'"lr": 1', b'"lr": 9'))
    with pytest.raises(DamagedError, match="stages/a/1"):
        store.get_document("stages/a/1")
    assert not store.swap_document("stages/a/1", "{}", "[]")
    assert store.swap_document("stages/a/1", None, "[]")  # a damaged one counts as none
    assert store.get_document("stages/a/1") == "[]"


def test_a_document_that_is_no_text_is_damaged(make_s3: MakeS3) -> None:
    store = make_s3()
    name = store.bucket.location.key("documents/stages/a/1.json")
    store.bucket.client.put_object(Bucket=BUCKET, Key=name, Body=b"\xff\xfe")
    with pytest.raises(DamagedError, match="stages/a/1"):
        store.get_document("stages/a/1")


def test_an_object_that_is_there_is_not_sent_again(make_s3: MakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_s3()
    store.put_bytes(b"weights")
    monkeypatch.setattr(store.bucket, "send", lambda *_: pytest.fail("sent again"))
    store.put_bytes(b"weights")


def test_an_object_is_verified_where_it_is_kept(make_s3: MakeS3) -> None:
    store = make_s3()
    ref = store.put_bytes(b"weights")
    store.verify(ref.sha256)
    overwrite(store, ref, b"weightz")
    assert get_bytes(store, ref) == b"weights"  # the cache's
    with pytest.raises(DamagedError, match=ref.sha256):
        store.verify(ref.sha256)


def test_projects_are_kept_apart_by_their_prefix(make_s3: MakeS3) -> None:
    make_s3("project-a").put_document("key", "{}")
    ref = make_s3("project-a").put_bytes(b"weights")
    other = make_s3("project-b")
    assert other.get_document("key") is None
    assert not other.has(ref.sha256)
    assert list(other.objects()) == []


def test_long_lists_come_in_pages(make_s3: MakeS3) -> None:
    store = make_s3()
    for number in range(5):
        store.put_document(f"stages/{number}", "{}")
    store.bucket.client.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2)
    )
    assert store.list_documents("stages/") == [f"stages/{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"encryption": "AES256"}, {"ServerSideEncryption": "AES256"}),
        (
            {"encryption": "aws:kms", "kms_key": "key-1"},
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1"},
        ),
    ],
    ids=["AES256", "kms"],
)
def test_encryption_is_asked_for_in_every_upload(
    make_s3: MakeS3, values: dict[str, str], expected: dict[str, str]
) -> None:
    store = make_s3(**values)
    asked: list[dict[str, Any]] = []

    def record(params: dict[str, Any], **_: Any) -> None:
        asked.append({name: params.pop(name) for name in list(params) if name in expected})

    # The test server has no keys to encrypt with: what is asked for is taken out on its way.
    for operation in ("PutObject", "CreateMultipartUpload"):
        store.bucket.client.meta.events.register(f"before-parameter-build.s3.{operation}", record)
    store.put_document("key", "{}")
    store.put_bytes(b"small")
    store.put_bytes(bytes(17 << 20))
    assert asked == [expected] * 3


@pytest.mark.parametrize("old", [None, "a"], ids=["absent", "there"])
def test_a_swap_that_was_overtaken_between_its_look_and_its_write_loses(
    make_s3: MakeS3, monkeypatch: pytest.MonkeyPatch, old: str | None
) -> None:
    slow = make_s3("overtaken", "one")
    quick = make_s3("overtaken", "two")
    if old is not None:
        slow.put_document(f"champion {old}", old)
    look = slow._read

    def looks_and_is_overtaken(key: str) -> tuple[str, str] | None:
        found = look(key)
        monkeypatch.setattr(slow, "_read", look)
        assert quick.swap_document(key, old, "quick")
        return found

    assert slow.has_conditional_writes
    monkeypatch.setattr(slow, "_read", looks_and_is_overtaken)
    assert not slow.swap_document(f"champion {old}", old, "slow")
    assert quick.get_document(f"champion {old}") == "quick"


def test_a_server_without_conditional_writes_is_told_of(
    make_s3: MakeS3, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_s3()

    def ignore(params: dict[str, Any], **_: Any) -> None:
        params.pop("IfNoneMatch", None)
        params.pop("IfMatch", None)

    store.bucket.client.meta.events.register("before-parameter-build.s3.PutObject", ignore)
    assert store.swap_document("champion", None, "a")
    assert store.swap_document("champion", "a", "b")
    assert not store.swap_document("champion", "a", "c")
    assert caplog.text.count("no conditional writes") == 1


def test_missing_bucket_is_named_before_any_work(make_s3: MakeS3) -> None:
    with pytest.raises(StoreError, match="no-such-bucket.*the bucket does not exist; create it"):
        make_s3(root="s3://no-such-bucket/x").check()


def test_missing_permission_is_said_before_any_work(
    make_s3: MakeS3, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, s3_server, READER)
    with pytest.raises(StoreError, match=r"AccessDenied: these credentials may not do that"):
        make_s3().check()


def test_a_runner_needs_no_more_than_its_bucket(
    make_s3: MakeS3, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, s3_server, RUNNER)
    store = make_s3()
    store.check()
    assert get_bytes(store, store.put_bytes(b"weights")) == b"weights"
    with pytest.raises(StoreError, match="403|AccessDenied"):
        make_s3(root="s3://another-bucket/x").check()


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "check AWS_ACCESS_KEY_ID|these credentials may not do that, or are wrong"),
        (
            "AWS_SECRET_ACCESS_KEY",
            "check AWS_SECRET_ACCESS_KEY|these credentials may not do that, or are wrong",
        ),
    ],
)
def test_wrong_keys_are_said_and_never_shown(
    make_s3: MakeS3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variable: str,
    message: str,
) -> None:
    secret = "NOTTHEKEY0123456789"
    monkeypatch.setenv(variable, secret)
    with caplog.at_level("INFO"), pytest.raises(StoreError, match=message) as caught:
        make_s3().check()
    assert secret not in str(caught.value) + caplog.text


def test_no_credentials_at_all(make_s3: MakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        make_s3().check()


@pytest.mark.parametrize("listens", [False, True], ids=["refused", "silent"])
def test_a_server_that_never_answers_is_said_at_once(
    make_s3: MakeS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    listens: bool,
) -> None:
    monkeypatch.setattr(s3_client, "_REACH_S", 1.0)
    root = make_s3().root  # also sets the credentials
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        config = StoreConfig(root=root, endpoint=f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(StoreError, match="the server does not answer; check store.endpoint"):
            open_store(config, tmp_path)
    assert "the server does not answer; check store.endpoint" in caplog.text  # before it is asked again
    # The client alone makes ten attempts with growing pauses, four times over.
    assert time.monotonic() - started < 20.0


def test_a_server_that_is_being_started_is_waited_for(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    root = make_s3().root
    (port,) = free_ports(1)
    config = StoreConfig(root=root, endpoint=f"http://127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_store, config, tmp_path)
        time.sleep(0.5)
        assert not opened.done()
        with fault_proxy(s3_server.endpoint, FaultPlan(rate=0.0), port=port):
            assert opened.result(60).root == root


def test_newer_layout_is_refused(make_s3: MakeS3) -> None:
    store = make_s3()
    store.bucket.client.put_object(
        Bucket=BUCKET, Key=store.bucket.location.key("layout.json"), Body=b'{"version": 99}'
    )
    with pytest.raises(StoreError, match="layout version 99"):
        store.check()


@pytest.mark.parametrize(
    "root", ["s3:/bucket", "s3://", "s3://AKIA:secret@host/bucket", "s3://Upper/x", "s3://bucket/../other"]
)
def test_roots_that_are_no_bucket_are_refused_and_not_repeated(root: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix") as caught:
        open_store(StoreConfig(root=root), tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "key"), [("s3://bucket", "a/b"), ("s3://bucket/", "a/b"), ("s3://bucket/p/q/", "p/q/a/b")]
)
def test_prefix(root: str, key: str) -> None:
    assert Location.parse(root).key("a/b") == key
    assert str(Location.parse(root)) == root.rstrip("/")


def test_password_in_the_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidConfig, match="without user, password or path") as caught:
        parse_config({"store": {"endpoint": "https://me:secret@host"}})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("place", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "file"])
@pytest.mark.parametrize(
    "address", ["http://me:hunter2@127.0.0.1:9", "me:hunter2@host", "http://me:hunter2@ho st"]
)
def test_password_in_the_endpoint_that_aws_finds_is_refused_and_not_repeated(
    make_s3: MakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, address: str
) -> None:
    store = make_s3(attempts=1, timeout_s=0.5)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    if place == "file":
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {address}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(place, address)
    with pytest.raises(ConfigError, match="without user and password") as caught:
        store.check()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_the_configuration_selects_the_store(make_s3: MakeS3, tmp_path: Path) -> None:
    assert isinstance(open_store(StoreConfig(root="a/b"), tmp_path), LocalStore)
    root = make_s3().root  # also sets the credentials: opening looks at the layout
    store = open_store(StoreConfig(root=root, local="c"), tmp_path)
    assert isinstance(store, S3Store)
    assert store.root == root
    assert store.work_folder("x").is_relative_to(tmp_path / "c")


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize("sent", [DATE, f"{DATE}, Sun, 06 Nov 1994 08:49:38 GMT"], ids=["one", "two"])
def test_the_servers_time_is_the_first_of_its_dates(sent: str) -> None:
    answer = {"ResponseMetadata": {"HTTPHeaders": {"date": sent}}}
    assert s3_bucket._server_time(answer) == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize("sent", ["yesterday", "Sun, 99 Nov 1994 08:49:37 GMT"])
def test_a_time_that_is_none_is_said(sent: str) -> None:
    with pytest.raises(DamagedError, match=f"Date is '{sent}'"):
        s3_bucket._server_time({"ResponseMetadata": {"HTTPHeaders": {"date": sent}}})
