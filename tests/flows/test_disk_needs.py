"""Disk needs grow with what a step really reads and writes; a configured disk that is smaller is refused."""

from typing import Any

import pytest

from artifacts_schema.config import parse_config
from artifacts_schema.data import PreparedDataRef, PreparedSplit, RawData, RawFile, Shard, StreamedSplit
from artifacts_schema.plan import RunPlan
from artifacts_schema.references import FolderRef, ObjectRef
from flows.disk_needs import disk_needs, prepared_bytes, short_disks, tell_disks
from steps.files.errors import ConfigError

GIB = 1 << 30


def _object(size: int) -> ObjectRef:
    return ObjectRef(uri="sha256:" + "0" * 64, sha256="0" * 64, bytes=size)


def _plan(pictures_bytes: int = 4 * GIB, raw_bytes: int = 0) -> RunPlan:
    shards = {"embeddings": (_object(2),), "moments": (_object(3),), "images": (_object(pictures_bytes),)}
    split = PreparedSplit(
        size=1, captions=_object(1), **{name: (Shard(object=ref[0], rows=1),) for name, ref in shards.items()}
    )
    data = PreparedDataRef(
        config={}, seed=0, source="x", splits={"train": split}, empty_embedding=_object(1), scaling_factor=1.0,
        latent_shape=(4, 64, 64), image_size=512, examined=1,
    )  # fmt: skip
    return RunPlan(
        stage="start", config={}, seed=0, base=FolderRef(files={"a": _object(5 * GIB)}), base_identity="b",
        prediction_type="epsilon", data=data,
        raw_data=RawData(files=(RawFile(name="0.tar", sha256="0" * 64, bytes=raw_bytes),)),
        estimates={"unet_parameters": 860e6, "decoder_parameters": 50e6},
    )  # fmt: skip


def _config(**resources: Any) -> Any:
    return parse_config({"store": {"root": "s3://b/p"}, "resources": resources})


def test_prepared_data_count_with_every_part() -> None:
    assert prepared_bytes(_plan(pictures_bytes=10).data) == 1 + 1 + 2 + 3 + 10


def test_a_training_needs_base_data_weights_and_checkpoints() -> None:
    needs = disk_needs(_config(), _plan())
    unet = 4 * 860e6
    # base, data, the weights of teacher and student, sixteen times its own, and a gigabyte
    assert needs["student_8"] == pytest.approx(9 * GIB + 2 * unet + 16 * unet + GIB, rel=1e-6)
    assert needs["latency_profile"] < needs["evaluation"] < needs["student_8"]
    assert "plan_evaluation" in needs and "bundle" in needs and "real_pictures" not in needs


def test_more_pictures_and_shards_need_more() -> None:
    small, large = disk_needs(_config(), _plan()), disk_needs(_config(), _plan(8 * GIB, raw_bytes=20 * GIB))
    assert large["robust_training"] - small["robust_training"] == 4 * GIB
    assert large["start"] - small["start"] == 24 * GIB


def test_of_streamed_data_a_training_needs_the_cache_and_start_one_shard() -> None:
    shards = tuple(Shard(object=_object(3 * GIB), rows=9) for _ in range(100))
    plan = _plan(raw_bytes=20 * GIB)
    splits = {"train": StreamedSplit(shards=shards, window=8)}
    plan = plan.model_copy(
        update={"data": plan.data.model_copy(update={"source": "webdataset", "splits": splits})}
    )
    included = disk_needs(_config(), _plan(raw_bytes=20 * GIB))
    needs = disk_needs(_config(), plan)
    data = included["robust_training"] - needs["robust_training"]
    assert data == pytest.approx(4 * GIB - 200 * GIB, abs=100)
    assert included["start"] - needs["start"] == pytest.approx(4 * GIB - 6 * GIB, abs=100)


def test_a_disk_that_is_too_small_is_refused_on_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan = _config(default={"disk_mb": 20_000}, student_8={"disk_mb": 200_000}), _plan()
    short = short_disks(config, disk_needs(config, plan))
    assert any("resources.teacher_16.disk_mb is 20000, about" in line for line in short)
    assert not any("student_8" in line or "latency_profile" in line for line in short)
    monkeypatch.delenv("METAFLOW_KUBERNETES_WORKLOAD", raising=False)
    monkeypatch.delenv("AWS_BATCH_JOB_ID", raising=False)
    tell_disks(config, plan)
    monkeypatch.setenv("METAFLOW_KUBERNETES_WORKLOAD", "1")
    with pytest.raises(ConfigError, match="raise it"):
        tell_disks(config, plan)
