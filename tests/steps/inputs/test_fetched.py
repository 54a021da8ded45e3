"""Inputs on S3: what arrives, when it is fetched again, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.run_configs import StoreConfig
from steps.files.errors import ConfigError, DataError
from steps.inputs.fetched import fetch, with_fetched_inputs, with_fetched_table
from steps.store.s3_source import S3File, s3_source
from tests.conftest import BUCKET, Put


def _config(**sections: Any) -> SnapFusionConfig:
    return parse_config(
        {"store": {"root": f"s3://{BUCKET}/store", "attempts": 2, "timeout_s": 5.0}, **sections}
    )


def test_a_folder_becomes_a_path(put: Put, tmp_path: Path) -> None:
    put("clip/config.json", b"{}")
    place = put("clip/weights/model.safetensors", b"weights").rpartition("/weights")[0]
    shards = f"{place}/{{000..001}}.tar"
    here = {"signal_clip": place, "measure_clip": "assets/measure"}
    config = _config(evaluation=here, data={"source": "webdataset", "shards": [shards]})
    found = with_fetched_inputs(config, tmp_path)
    folder = Path(found.evaluation.signal_clip)
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "weights/model.safetensors").read_bytes() == b"weights"
    assert found.evaluation.measure_clip == "assets/measure"
    assert found.data.shards == (shards,)  # read one at a time, when they are encoded
    assert found.store == config.store and found.base == config.base


def test_what_changes_there_is_fetched_anew_and_what_does_not_is_not(put: Put, tmp_path: Path) -> None:
    config = _config().store
    first = fetch(put("table.json", b"one"), config, tmp_path, "latency_profile.table")
    first.write_bytes(b"looked at, not fetched again")
    again = fetch(put("table.json", b"one"), config, tmp_path, "latency_profile.table")
    assert again.read_bytes() == b"looked at, not fetched again"
    assert fetch(put("table.json", b"two"), config, tmp_path, "latency_profile.table").read_bytes() == b"two"


def test_the_manifest_comes_along_with_a_devices_table(put: Put, tmp_path: Path) -> None:
    place = put("kit/latency.json", b"{}")
    put("kit/manifest.json", b"m")
    put("kit/other.json", b"o")
    found = with_fetched_table(_config(latency_profile={"backend": "device", "table": place}), tmp_path)
    assert found.latency_profile.table is not None
    there = Path(found.latency_profile.table).parent.iterdir()
    assert sorted(path.name for path in there) == ["latency.json", "manifest.json"]


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        (f"s3://{BUCKET}/nowhere/at-all", ConfigError, "where nothing lies"),
        ("s3://no_bucket", ConfigError, "s3://bucket/key"),
        ("s3://user:secret@host/x", ConfigError, "without keys"),
    ],
)
def test_a_place_that_is_none_is_refused(
    put: Put, tmp_path: Path, place: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        fetch(place, _config().store, tmp_path, "base.path", whole=True)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_replaced_meanwhile_is_refused(put: Put, tmp_path: Path) -> None:
    put("x.tar", b"longer than before")
    source = s3_source(StoreConfig(root=f"s3://{BUCKET}/store", attempts=2, timeout_s=5.0), BUCKET)
    key = next(item for item in source.listed("", "") if item.key.endswith("/x.tar"))
    with pytest.raises(DataError, match="changed while"):
        source.copy(S3File("x.tar", key.key, 3, key.etag), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
