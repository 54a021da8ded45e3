"""An S3 store behind a proxy that injects faults: nothing wrong is used, nothing is lost.

`python -m benchmarks.store_faults` is the long version.
"""

from pathlib import Path
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff

from artifacts_schema.run_configs import StoreConfig
from benchmarks.store_faults import round_of
from infra.local.fault_proxy import FAULTS, FaultPlan, fault_proxy
from infra.local.seaweedfs import Server
from steps.files.errors import DamagedError, StoreError
from steps.store import open_store
from steps.store.s3 import S3Store
from tests.conftest import BUCKET, MakeS3


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits up to seconds before it tries again."""
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.02)


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_wrong(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    make_s3()  # sets the credentials
    monkeypatch.setattr("benchmarks.store_faults.BUCKET", BUCKET)
    # boto3 slows down for seconds after each 503, as it should: few of them are enough.
    rate = 0.03 if fault == "slow_down_503" else 0.1
    outcome = round_of(s3_server.endpoint, [fault], tmp_path, rate=rate, seed=3, large=False)
    assert outcome.injected[fault] > 0
    assert (outcome.lost, outcome.wrong) == ([], [])


def through(proxy: str, prefix: str, folder: Path) -> S3Store:
    return S3Store(
        StoreConfig(root=f"s3://{BUCKET}/{prefix}", endpoint=proxy, timeout_s=2.0, attempts=2), folder
    )


def test_bytes_that_arrive_wrong_every_time_are_refused(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    ref = make_s3("flips").put_bytes(b"weights" * 1000)
    with fault_proxy(s3_server.endpoint, FaultPlan(["flip_answer"], rate=1.0)) as proxy:
        store = through(proxy, "flips", tmp_path / "there")
        with pytest.raises(DamagedError, match=f"{ref.sha256}.*what arrived is not what was stored"):
            store.path_of(ref)
    assert list(store.local.objects()) == []


def test_bytes_that_are_damaged_on_their_way_out_are_not_stored(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    plan = FaultPlan(["flip_request"], rate=1.0)
    with fault_proxy(s3_server.endpoint, plan) as proxy, pytest.raises(StoreError):
        through(proxy, "flips-out", tmp_path / "a").put_bytes(b"weights" * 1000)
    assert list(make_s3("flips-out").objects()) == []


def test_a_swap_whose_answer_was_lost_is_known_to_have_happened(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    plain = make_s3("lost-answer")
    plain.put_document("champion", "a")
    plan = FaultPlan(["reset_after"], rate=0.0)
    with fault_proxy(s3_server.endpoint, plan) as proxy:
        store = through(proxy, "lost-answer", tmp_path / "a")
        assert store.has_conditional_writes

        def lose_first_answer(**_: object) -> None:
            plan.rate = 1.0 if not plan.injected else 0.0

        store.bucket.client.meta.events.register("before-send.s3.PutObject", lose_first_answer)
        assert store.swap_document("champion", "a", "b")
    assert plan.injected["reset_after"] == 1
    assert plain.get_document("champion") == "b"


def test_an_overloaded_server_is_asked_again_when_a_store_is_opened(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    root = make_s3().root

    class Overloaded(FaultPlan):
        """Answers 503 four times."""

        def draw(self, *, has_request_body: bool) -> tuple[str, float]:
            self.rate = 1.0 if self.injected["slow_down_503"] < 4 else 0.0
            return super().draw(has_request_body=has_request_body)

    plan = Overloaded(["slow_down_503"])
    with fault_proxy(s3_server.endpoint, plan) as proxy:
        open_store(StoreConfig(root=root, endpoint=proxy), tmp_path)
    assert plan.injected["slow_down_503"] == 4


def test_a_server_that_only_fails_ends_in_a_clear_error(
    s3_server: Server, make_s3: MakeS3, tmp_path: Path
) -> None:
    make_s3()
    with fault_proxy(s3_server.endpoint, FaultPlan(["slow_down_503"], rate=1.0)) as proxy:
        store = through(proxy, "fails", tmp_path / "a")
        with pytest.raises(StoreError, match="SlowDown|503"):
            store.put_document("key", "{}")


def test_a_damaged_list_hides_nothing(s3_server: Server, make_s3: MakeS3, tmp_path: Path) -> None:
    """One wrong bit in each of 40 lists: refused, or every document is named, at worst under a name that is not there."""
    plain = make_s3("damaged-lists")
    for number in range(8):
        plain.put_document(f"stages/robust_training/{number}", "{}")
    good = set(plain.list_documents(""))
    hidden = 0
    with fault_proxy(s3_server.endpoint, FaultPlan(["flip_answer"], rate=1.0, seed=4)) as proxy:
        store = through(proxy, "damaged-lists", tmp_path / "there")
        for _ in range(40):
            try:
                found = set(store.list_documents(""))
            except StoreError:
                continue
            wrong = found - good
            hidden += len(good - found) > len(wrong)
            assert all(plain.get_document(key) is None for key in wrong)
    assert hidden == 0


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [
        (b"documents/stages/1.json", b"documents/stages/1.jsoo"),
        (b"documents/stages/1.json", b"doguments/stages/1.json"),
        (b"documents/stages/1.json", b"documents/stages/0.json"),
        (b"damaged-page", b"damaged-qage"),
        (b"<IsTruncated>true", b"<IsTruncated>tsue"),
    ],
    ids=["suffix", "kind", "twice", "prefix", "end"],
)
def test_a_list_with_one_wrong_bit_is_asked_for_again(make_s3: MakeS3, sound: bytes, damaged: bytes) -> None:
    store = make_s3("damaged-page")
    for number in range(4):
        store.put_document(f"stages/{number}", "{}")
    events, done = store.bucket.client.meta.events, []

    def damage(response_dict: dict[str, Any], **_: object) -> None:
        place = response_dict["body"].rfind(sound)
        if place >= 0 and not done:
            done.append(damaged)
            body = response_dict["body"]
            response_dict["body"] = body[:place] + damaged + body[place + len(sound) :]

    events.register("before-parse.s3.ListObjectsV2", damage)
    events.register("before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=3))
    assert store.list_documents("") == [f"stages/{number}" for number in range(4)]
    assert done


def test_a_key_that_no_store_writes_is_named(make_s3: MakeS3) -> None:
    store = make_s3("foreign")
    store.bucket.client.put_object(Bucket=BUCKET, Key="foreign/documents/notes.txt", Body=b"x")
    with pytest.raises(DamagedError, match=r"foreign/documents/notes\.txt"):
        store.list_documents("")
