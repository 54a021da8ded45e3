"""An S3 store behind a proxy that injects faults: nothing wrong is used, nothing is lost.

`python -m benchmarks.store_faults` is the long version.
"""

from pathlib import Path

import pytest
from botocore.retries.standard import ExponentialBackoff

from artifacts_schema.config import StoreConfig
from benchmarks.store_faults import round_of
from infra.local.fault_proxy import FAULTS, FaultPlan, fault_proxy
from infra.local.seaweedfs import Server
from steps.errors import DamagedError, StoreError
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
