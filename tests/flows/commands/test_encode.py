"""`snapfusion encode`: a worker, whose work `start` of a run finds."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.config import parse_config
from flows.commands import encode as command
from flows.commands.encode import encode
from steps.data import workers
from steps.data.workers import DOCUMENTS
from steps.files.errors import ConfigError
from steps.files.hashes import FileHashes
from steps.inputs.context import StageContext
from steps.inputs.folders import raw_data
from steps.stages import start
from steps.store import LocalStore
from tests.steps.data.shard_files import samples, write


def test_a_worker_encodes_and_start_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "WORK_ROOT", tmp_path)
    for number in range(2):
        write(tmp_path / f"{number}.tar", samples(40, start=40 * number))
    config = parse_config(
        {
            "store": {"root": "store"},
            "base": {"path": "micro", "warm_start": False},
            "data": {"source": "webdataset", "shards": [str(tmp_path / "{0..1}.tar")]},
            "evaluation": {"signal_clip": "unused", "measure_clip": "unused"},
        }
    )
    encode(config)
    assert "2 shards are encoded, 80 pictures" in capsys.readouterr().out
    store = LocalStore(tmp_path / "store")
    assert len(store.list_documents(f"{DOCUMENTS}/")) == 2

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(workers, "encode_shard", refuse)
    raw = raw_data(config.data, tmp_path, FileHashes(tmp_path / "hashes"))
    context = StageContext(stage="start", store=store, work=store.work_folder("start/x"), seed=0)
    assert (
        sum(
            shard.rows
            for item in start.encode(raw, config, context, tmp_path)
            for shard in item.splits.values()
        )
        == 80
    )


def test_data_without_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="data.source is 'openmoji'"):
        encode(parse_config({}))
