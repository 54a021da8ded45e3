"""The record of prepared data."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from artifacts_schema.base import Provenance
from artifacts_schema.data import PreparedDataRef, PreparedSplit, Shard
from artifacts_schema.readers import read_record
from artifacts_schema.references import ObjectRef

RECORDS = Path(__file__).parent.parent / "fixtures" / "records"


def _object(digit: str) -> ObjectRef:
    return ObjectRef(uri=f"sha256:{digit * 64}", sha256=digit * 64, bytes=10)


def _split(size: int = 3) -> PreparedSplit:
    shards = (Shard(object=_object("a"), rows=2), Shard(object=_object("b"), rows=size - 2))
    return PreparedSplit(size=size, captions=_object("c"), embeddings=shards, moments=shards, images=shards)


def _record() -> PreparedDataRef:
    return PreparedDataRef(
        source="openmoji",
        attribution="OpenMoji",
        splits={"train": _split()},
        empty_embedding=_object("f"),
        scaling_factor=0.5,
        latent_shape=(4, 16, 16),
        image_size=64,
        examined=4,
        skipped={"corrupt_image": 1},
    )


def test_is_read_back_as_it_was_written() -> None:
    record = _record()
    assert read_record(record.to_json()) == record


def test_version_1_is_still_read() -> None:
    assert read_record((RECORDS / "prepared_data_v1.json").read_text()) == _record()


def test_identity_follows_the_content_and_not_the_provenance() -> None:
    record = _record()
    elsewhere = record.model_copy(update={"provenance": Provenance(created_at="2024-01-01", host="other")})
    assert elsewhere.identity() == record.identity()
    assert record.model_copy(update={"scaling_factor": 0.6}).identity() != record.identity()


@pytest.mark.parametrize("kind", ["embeddings", "moments", "images"])
def test_rows_must_match_pictures(kind: str) -> None:
    rows = {name: (Shard(object=_object("a"), rows=4),) for name in ("embeddings", "moments", "images")}
    rows[kind] = (Shard(object=_object("a"), rows=3),)
    with pytest.raises(ValidationError, match=f"4 pictures, 1 a caption, but 3 rows of {kind}"):
        PreparedSplit(size=4, captions=_object("c"), **rows)


def test_variants_share_an_embedding() -> None:
    two, four = (Shard(object=_object("a"), rows=2),), (Shard(object=_object("b"), rows=4),)
    kept: dict[str, Any] = {"captions": _object("c"), "moments": four, "images": four}
    assert PreparedSplit(size=4, variants=2, embeddings=two, **kept).variants == 2
    with pytest.raises(ValidationError, match="4 pictures, 2 a caption, but 4 rows of embeddings"):
        PreparedSplit(size=4, variants=2, embeddings=four, **kept)


def test_unknown_split_is_refused() -> None:
    payload = _record().model_dump()
    payload["splits"]["holdout"] = payload["splits"]["train"]
    with pytest.raises(ValidationError, match="holdout"):
        PreparedDataRef.model_validate(payload)


def test_reading_needs_no_torch() -> None:
    program = "import sys, artifacts_schema.data; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
