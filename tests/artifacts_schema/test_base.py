"""Identity, measurements and the reading of records."""

import json

import pytest

from artifacts_schema.base import Measurement, Provenance
from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef, ObjectRef, WeightsRef
from artifacts_schema.training import TrainingRecord

OBJECT = ObjectRef(uri="sha256:" + "a" * 64, sha256="a" * 64, bytes=3)


def training_record(**changes: object) -> TrainingRecord:
    weights = WeightsRef(**OBJECT.model_dump(), schema_id="diffusers.UNet2DConditionModel", config=OBJECT)
    record = TrainingRecord(stage="robust_training", weights=weights, iterations=100, batch_size=32)
    return record.model_copy(update=changes)


def test_identity_ignores_when_and_where() -> None:
    first = training_record(provenance=Provenance(created_at="2026-01-01", host="a", wall_time_s=3.0))
    second = training_record(
        provenance=Provenance(created_at="2026-02-02", host="b", wall_time_s=4.0),
        images_per_s=Measurement.of([1.0], "images/s"),
    )
    assert first.identity() == second.identity()


def test_identity_depends_on_what_was_done() -> None:
    assert training_record().identity() != training_record(iterations=101).identity()


def test_record_survives_json() -> None:
    record = training_record(curve=({"iteration": 10.0, "loss": 0.5},))
    assert read_record(record.to_json()) == record


def test_unknown_schema_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown record schema 'x\.y'"):
        read_record('{"schema": "x.y", "version": 1}')


def test_newer_version_is_refused() -> None:
    payload = json.loads(training_record().to_json()) | {"version": 99}
    with pytest.raises(ValueError, match="version 99 is newer"):
        read_record(json.dumps(payload))


def test_measurement_of_known_values() -> None:
    measured = Measurement.of([1.0, 2.0, 3.0, 4.0, 5.0], "ms")
    assert (measured.median, measured.p10, measured.p90) == pytest.approx((3.0, 1.4, 4.6))


def test_measurement_needs_values() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Measurement.of([], "ms")


def test_folder_identity_ignores_the_place() -> None:
    elsewhere = OBJECT.model_copy(update={"uri": "s3://bucket/a"})
    assert FolderRef(files={"x": OBJECT}).identity() == FolderRef(files={"x": elsewhere}).identity()
