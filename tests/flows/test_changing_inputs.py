"""Inputs that somebody replaces while they are read: no cache entry says that the result is of the old ones."""

import io
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from webdataset import TarWriter

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.plan import RunPlan
from flows import runtime, stages
from flows.runtime import run_stage
from steps.data.prepared import PreparedData
from steps.data.webdataset import split_of
from steps.files.errors import DataError, LatencyTableError
from steps.models.base_folder import folder_identity
from steps.pretraining.micro import write_micro_base, write_micro_openclip
from steps.stages import latency_profile
from steps.stages import start as start_stage
from steps.stages.table import STAGES
from tests.flows.keys import example


def shard(path: Path, word: str) -> Path:
    """Pictures whose captions begin with `word`, two of every split."""
    captions: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for number in itertools.count():
        caption = f"{word} {number}"
        if len(captions[split_of(caption)]) < 2:
            captions[split_of(caption)].append(caption)
        if min(map(len, captions.values())) == 2:
            break
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with TarWriter(str(path)) as writer:
        for number, caption in enumerate(itertools.chain(*captions.values())):
            writer.write({"__key__": f"{number:03d}", "png": picture.getvalue(), "txt": caption})
    os.utime(path, (1e9, 1e9))  # long complete, so that its hash is remembered
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every input of a run, and beside it, in `other`, another one."""
    monkeypatch.setattr(stages, "WORK_ROOT", tmp_path)
    monkeypatch.setattr(runtime, "WORK_ROOT", tmp_path)
    for seed, place in enumerate((tmp_path, tmp_path / "other")):
        place.mkdir(exist_ok=True)
        shard(place / "a.tar", f"of {place.name} {seed}")
        write_micro_base(place / "base", seed=seed)
        write_micro_openclip(place / "clip")
        (place / "clip" / "note.txt").write_text(str(seed))
        (place / "velocity").mkdir()
        (place / "velocity" / "config.json").write_text(str(seed))
    return tmp_path


def config(folder: Path) -> SnapFusionConfig:
    return parse_config(
        {
            "store": {"root": str(folder / "store")},
            "base": {
                "path": str(folder / "base"),
                "velocity_warm_start": str(folder / "velocity"),
                "robust_warm_start": str(folder / "velocity"),
            },
            "data": {"source": "webdataset", "shards": [str(folder / "a.tar")]},
            "evaluation": {"signal_clip": str(folder / "clip"), "measure_clip": str(folder / "clip")},
        }
    )


def exchange(folder: Path, name: str) -> None:
    """Put the other one in an input's place; a second time puts the first one back."""
    shutil.move(folder / name, folder / "aside")
    shutil.move(folder / "other" / name, folder / name)
    shutil.move(folder / "aside", folder / "other" / name)


def before(module: Any, name: str, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `action` done before the first call of a function."""
    called, done = getattr(module, name), []

    def call(*arguments: Any, **named: Any) -> Any:
        if not done:
            done.append(True)
            action()
        return called(*arguments, **named)

    monkeypatch.setattr(module, name, call)


def outcome(task: Any) -> str:
    """What the card says last of the cache."""
    text: str = task.card["progress"][-1].render()["text"]
    return text.split("cache ")[1].split(":")[0]


@pytest.mark.parametrize(
    ("name", "moment", "said"),
    [
        ("a.tar", "jobs_of", r"shard \S+/a.tar"),
        ("a.tar", "prepare_shards", "raw data"),
        ("base", "load_base", "base"),
        ("base", "put_model_folder", "base"),
        ("clip", "check_clip", "signal_clip, measure_clip"),
        ("velocity", "check_clip", "velocity_warm_start, robust_warm_start"),
    ],
)
def test_an_input_replaced_during_start_leaves_no_entry(
    name: str, moment: str, said: str, task: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before(start_stage, moment, lambda: exchange(folder, name), patch)
        with pytest.raises(DataError, match=rf"^{said} changed while (`start` worked|it was read)"):
            stages.start(config(folder))
    exchange(folder, name)
    plan = stages.start(config(folder))
    assert outcome(task) == "miss"
    assert plan.base_identity == folder_identity(folder / "base")
    assert captions(plan, folder) == {f"of {folder.name} 0"}
    stages.start(config(folder))
    assert outcome(task) == "hit"


def captions(plan: RunPlan, folder: Path) -> set[str]:
    """What the captions of a plan's pictures begin with."""
    data = PreparedData.load(runtime.store_of(config(folder)), plan.data)
    return {caption.rsplit(" ", 1)[0] for caption in data.captions("train")}


def test_a_base_replaced_while_pictures_are_encoded_changes_nothing(
    task: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the plan is of the base that was there when the run began."""
    expected = folder_identity(folder / "base")
    with monkeypatch.context() as patch:
        before(start_stage, "jobs_of", lambda: exchange(folder, "base"), patch)
        plan = stages.start(config(folder))
    assert plan.base_identity == plan.base.identity() == expected
    exchange(folder, "base")
    again = stages.start(config(folder))
    assert (outcome(task), again.identity()) == ("hit", plan.identity())


@pytest.mark.parametrize("name", ["table.json", "manifest.json"])
def test_a_latency_table_replaced_while_it_is_read_leaves_no_entry(
    name: str, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("table.json", "manifest.json"):
        (tmp_path / file).write_text("old")
    settings = parse_config(
        {
            "store": {"root": str(tmp_path / "store")},
            "latency_profile": {"table": str(tmp_path / "table.json")},
        }
    )
    texts = ["old", "new"]  # what the stage leaves there, the last first

    def run(*_: Any) -> Any:
        (tmp_path / name).write_text(texts.pop())
        return example("latency_v1")

    monkeypatch.setattr(latency_profile, "run", run)
    records = {"start": example("run_plan_v1")}
    with pytest.raises(LatencyTableError, match=r"table\.json or its manifest changed while it was read"):
        run_stage(STAGES["latency_profile"], settings, records)
    (tmp_path / name).write_text("old")
    run_stage(STAGES["latency_profile"], settings, records)
    assert outcome(task) == "miss"


def test_a_latency_table_that_is_no_text_has_a_key(tmp_path: Path) -> None:
    """The stage refuses it, and says why."""
    (tmp_path / "table.json").write_bytes(b"\xff\xfe")
    settings = parse_config({"latency_profile": {"table": str(tmp_path / "table.json")}})
    assert runtime.table_identity(settings)["table"] != ""
