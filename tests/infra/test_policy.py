"""Least privilege: what the roles may do on a real server, and what the policies never say."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from artifacts_schema.run_configs import StoreConfig
from infra.local.seaweedfs import Identity, Server, serve
from infra.s3.__main__ import main
from infra.s3.policy import ROLES, Role, keep_versions, policy
from steps.cache.collector import Garbage, Retention, find_garbage, find_in_cache, remove
from steps.cache.leases import in_use, lease
from steps.files.errors import StoreError
from steps.store import get_bytes
from steps.store.s3 import S3Store

BUCKET, PREFIX = "shared-bucket", "project"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_reaches_beyond_its_prefix_or_changes_the_bucket(role: Role) -> None:
    statements = policy(BUCKET, PREFIX, role)["Statement"]
    actions = {action for statement in statements for action in statement["Action"]}
    assert not any("*" in action for action in actions)
    assert not actions & {
        "s3:PutBucketPolicy",
        "s3:DeleteObjectVersion",
        "s3:DeleteBucket",
        "s3:PutObjectAcl",
    }
    for statement in statements:
        for resource in statement["Resource"]:
            inside = resource.startswith(f"arn:aws:s3:::{BUCKET}/{PREFIX}/")
            assert inside or statement["Action"] in (["s3:ListBucket"], ["s3:ListBucketMultipartUploads"])


def test_a_runner_may_remove_scratch_only() -> None:
    removals = [s for s in policy(BUCKET, PREFIX, "runner")["Statement"] if "s3:DeleteObject" in s["Action"]]
    assert [resource.rpartition(f"{PREFIX}/")[2] for s in removals for resource in s["Resource"]] == [
        "work/*",
        "documents/probes/*",
        "documents/leases/use/*",
    ]


KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize("role", ROLES)
def test_a_key_of_ones_own_may_be_used_and_no_other(role: Role) -> None:
    plain, statements = (policy(BUCKET, PREFIX, role, kms_key=key)["Statement"] for key in (None, KEY))
    (added,) = [statement for statement in statements if statement not in plain]
    assert set(added["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
    assert added["Resource"] == [KEY]


@pytest.mark.parametrize("key", ["1234abcd", "alias/x", KEY.replace("key/", "alias/"), f"{KEY}*", "*"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="must be given as arn:aws:kms"):
        policy(BUCKET, PREFIX, "runner", kms_key=key)


@pytest.mark.parametrize("prefix", ["*", "project*", "proj?ct", "${aws:username}", "a/*/b"])
def test_a_prefix_that_a_policy_reads_as_a_pattern_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="reads as a pattern"):
        policy(BUCKET, prefix, "reader")


@pytest.mark.parametrize("bucket", ["*", "shared-*", "a/b", ""])
def test_what_is_no_bucket_is_refused(bucket: str) -> None:
    with pytest.raises(ValueError, match="expected the name of one bucket"):
        policy(bucket, PREFIX, "reader")


@pytest.mark.parametrize(
    ("partition", "service"),
    [("aws", "s3.eu-west-1.amazonaws.com"), ("aws-cn", "s3.eu-west-1.amazonaws.com.cn")],
)
def test_a_key_is_used_through_s3_only(partition: str, service: str) -> None:
    key = f"arn:{partition}:kms:eu-west-1:123456789012:key/ab-12"
    (statement,) = [
        s for s in policy(BUCKET, PREFIX, "reader", kms_key=key)["Statement"] if s["Sid"] == "UseKey"
    ]
    assert statement["Condition"] == {"StringEquals": {"kms:ViaService": service}}


def test_the_danger_of_pickled_artifacts_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--bucket", BUCKET, "--prefix", PREFIX])
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "Metaflow pickles its artifacts" in printed.err


def test_a_bucket_policy_grants_nothing_on_a_key() -> None:
    with pytest.raises(ValueError, match="leave out the principals"):
        policy(BUCKET, PREFIX, "runner", kms_key=KEY, principals=["arn:aws:iam::111122223333:role/x"])


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--bucket", BUCKET, "--prefix", PREFIX, "--kms-key"]
    assert main([*arguments, KEY]) == 0
    assert json.loads(capsys.readouterr().out) == policy(BUCKET, PREFIX, "runner", kms_key=KEY)
    with pytest.raises(SystemExit):
        main([*arguments, "1234abcd"])
    assert "must be given as arn:aws:kms" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Store]]:
    """A store for each role, on a server that enforces the policies, and one of the administrator."""
    folder = tmp_path_factory.mktemp("policy")
    users = {
        role: Identity.create(role, [], policy=json.dumps(policy(BUCKET, PREFIX, role))) for role in ROLES
    }
    with serve(folder, identities=list(users.values()), stop_s=0.0) as server:
        server.create_bucket(BUCKET)
        everyone = {**users, "admin": server.admin}
        yield {name: store_of(server, user, folder) for name, user in everyone.items()}


def client_of(server: Server, user: Identity) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=user.access_key,
        aws_secret_access_key=user.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def store_of(server: Server, user: Identity, folder: Path) -> S3Store:
    config = StoreConfig(root=f"s3://{BUCKET}/{PREFIX}", endpoint=server.endpoint, attempts=2)
    store = S3Store(config, folder / user.name)
    store.bucket.client = client_of(server, user)
    return store


def test_a_runner_can_do_all_that_a_run_needs(stores: dict[str, S3Store], tmp_path: Path) -> None:
    runner = stores["runner"]
    runner.check()
    ref = runner.put_bytes(b"weights")
    runner.local.delete_object(ref.sha256)
    assert get_bytes(runner, ref) == b"weights"
    assert runner.swap_document("champion", None, "1")
    assert not runner.has("0" * 64)
    mirror = runner.mirror("stage/key")
    assert mirror is not None
    (tmp_path / "file").write_bytes(b"x")
    mirror.send("c/tensors", tmp_path / "file")
    mirror.remove("c/tensors")
    assert mirror.names() == []


@pytest.mark.parametrize("role", ["runner", "reader"])
def test_neither_runner_nor_reader_can_remove_weights(stores: dict[str, S3Store], role: str) -> None:
    ref = stores["admin"].put_bytes(b"precious")
    with pytest.raises(StoreError, match="AccessDenied"):
        stores[role].delete_object(ref.sha256)
    assert stores["admin"].has(ref.sha256)


@pytest.mark.parametrize("role", ROLES)
def test_what_is_missing_is_missing_and_not_forbidden(stores: dict[str, S3Store], role: str) -> None:
    stores[role].bucket.require()
    assert not stores[role].has("0" * 64)
    assert stores[role].get_document("none") is None


def test_a_bucket_that_keeps_versions_keeps_what_a_runner_overwrites(stores: dict[str, S3Store]) -> None:
    admin, runner = stores["admin"].bucket, stores["runner"].bucket
    # The printed command without its quotes, as the shell would give it to Amazon's client.
    command = shlex.split(keep_versions(BUCKET, PREFIX).splitlines()[1])
    assert command[command.index("--versioning-configuration") + 1] == "Status=Enabled"
    admin.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    try:
        ref = stores["admin"].put_bytes(b"precious as it was")
        key = f"{PREFIX}/objects/{ref.sha256[:2]}/{ref.sha256}"
        runner.client.put_object(Bucket=BUCKET, Key=key, Body=b"garbage")
        versions = admin.client.list_object_versions(Bucket=BUCKET, Prefix=key)["Versions"]
        kept = next(v["VersionId"] for v in versions if not v["IsLatest"])
        with pytest.raises(ClientError, match="AccessDenied|403"):
            runner.client.delete_object(Bucket=BUCKET, Key=key, VersionId=kept)
        body = admin.client.get_object(Bucket=BUCKET, Key=key, VersionId=kept)["Body"].read()
        assert body == b"precious as it was"
    finally:
        admin.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})


def test_the_printed_lifecycle_is_one_that_a_server_takes(
    stores: dict[str, S3Store], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["infra.s3", "--bucket", BUCKET, "--prefix", PREFIX])
    assert main() == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == policy(BUCKET, PREFIX, "runner")
    command = shlex.split(printed.err.splitlines()[-1])
    rules = json.loads(command[command.index("--lifecycle-configuration") + 1])
    client = stores["admin"].bucket.client
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=rules)
    client.delete_bucket_lifecycle(Bucket=BUCKET)


def test_a_reader_can_read_only(stores: dict[str, S3Store]) -> None:
    ref = stores["admin"].put_bytes(b"to be read")
    assert get_bytes(stores["reader"], ref) == b"to be read"
    with pytest.raises(StoreError, match="AccessDenied"):
        stores["reader"].put_document("key", "{}")


def collect(store: S3Store) -> Garbage:
    return remove(store, lambda: find_garbage(store, Retention(min_age_s=-60.0)))


def test_a_collector_can_collect(stores: dict[str, S3Store]) -> None:
    ref = stores["admin"].put_bytes(b"orphan")
    assert ref.sha256 in collect(stores["collector"]).objects


@pytest.mark.parametrize("role", ROLES)
def test_whoever_works_holds_the_collector_back(stores: dict[str, S3Store], role: str) -> None:
    with (
        in_use(stores[role], f"work of a {role}"),
        pytest.raises(StoreError, match=f"work of a {role} on host"),
    ):
        collect(stores["collector"])
    assert stores["admin"].list_documents("leases/use/") == []


def test_a_collector_can_remove_leases_work_and_unfinished_uploads(
    stores: dict[str, S3Store], tmp_path: Path
) -> None:
    runner, client = stores["runner"], stores["runner"].bucket.client
    with lease(runner, "stages/stage/key"):
        (tmp_path / "file").write_bytes(b"x")
        mirror = runner.mirror("stage/key")
        assert mirror is not None
        mirror.send("c/tensors", tmp_path / "file")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=f"{PREFIX}/objects/ab/x")["UploadId"]
    found = collect(stores["collector"])
    assert set(found.work) == {"stage/key"}
    assert "leases/stages/stage/key" in found.documents
    assert any(upload in name for name in found.objects)
    assert list(stores["admin"].bucket.uploads()) == []


def test_a_runner_can_clear_its_cache(stores: dict[str, S3Store]) -> None:
    runner = stores["runner"]
    ref = runner.put_bytes(b"weights")
    (runner.work_folder("stage/key") / "scratch").write_bytes(b"x")
    found = remove(runner.cache, lambda: find_in_cache(runner, Retention(min_age_s=-60.0)))
    assert ref.sha256 in found.objects
    assert set(found.work) == {"stage/key"}


@pytest.mark.parametrize("role", ROLES)
def test_other_projects_are_out_of_reach(stores: dict[str, S3Store], role: str) -> None:
    client = stores[role].bucket.client
    stores["admin"].bucket.client.put_object(Bucket=BUCKET, Key="other/secret", Body=b"x")
    for action in (
        lambda: client.get_object(Bucket=BUCKET, Key="other/secret"),
        lambda: client.put_object(Bucket=BUCKET, Key="other/x", Body=b"x"),
        lambda: client.delete_object(Bucket=BUCKET, Key="other/secret"),
        lambda: client.list_multipart_uploads(Bucket=BUCKET, Prefix="other/"),
        lambda: client.put_bucket_policy(Bucket=BUCKET, Policy="{}"),
        lambda: client.list_objects_v2(Bucket=BUCKET),
        lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=""),
        lambda: client.list_objects_v2(Bucket=BUCKET, Prefix="other/"),
        lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=PREFIX),  # another project may begin with it
        lambda: client.list_objects(Bucket=BUCKET),
        lambda: client.list_object_versions(Bucket=BUCKET),
    ):
        with pytest.raises(ClientError, match="AccessDenied|403"):
            action()
