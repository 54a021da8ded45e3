"""`start`: what is wrong with base, data or evaluators fails there."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.data import RawData
from steps.files.errors import ArchitectureError, ConfigError, DataError, EvaluationError
from steps.files.hashes import FileHashes
from steps.inputs import folders as input_folders
from steps.inputs.context import StageContext
from steps.inputs.folders import input_identities, raw_data
from steps.inputs.loaded import StageInputs, fetch_folder
from steps.models.base import BaseModel
from steps.models.clip import WEIGHTS, ClipScorer
from steps.pretraining.micro import write_micro_base, write_micro_openclip
from steps.stages import start
from steps.store import LocalStore, put_folder
from tests.steps.latency.test_estimates import COSTS
from tests.steps.models.test_clip import standard_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_micro_openclip(tmp_path / "clip")
    return tmp_path


def config(**sections: dict[str, object]) -> SnapFusionConfig:
    clip = {"signal_clip": "clip", "measure_clip": "clip"}
    defaults = {"base": {"path": "micro"}, "data": {"limit": 4}, "evaluation": clip}
    return parse_config(defaults | sections)


def context(root: Path) -> StageContext:
    store = LocalStore(root / "store")
    return StageContext(stage="start", store=store, work=store.work_folder("start/x"), seed=0)


def test_plan_holds_everything_later_stages_read(root: Path) -> None:
    given = context(root)
    plan = start.run(RawData(packages={"emoji": "2"}), config(), given, root)
    assert plan.raw_data.packages == {"emoji": "2"}
    inputs = StageInputs(plan, given)
    assert inputs.base.latent_shape == (4, 16, 16)
    assert inputs.data.size("train") == 4
    assert inputs.signal_clip.text_embeddings(["a"]).shape == (1, 16)
    assert inputs.folder("velocity_warm_start") is None


def test_missing_evaluator_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.signal_clip names .*nowhere"):
        input_identities(
            config(evaluation={"signal_clip": "nowhere", "measure_clip": "clip"}), root, RawData()
        )


def test_evaluator_without_weights_is_refused_before_the_data(root: Path) -> None:
    weights = root / "clip" / WEIGHTS
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("visual")}, weights)
    with pytest.raises(EvaluationError, match=r"Missing key.*visual"):
        start.run(RawData(), config(), context(root), root)


def test_a_folder_of_openclips_own_saving_function_works_from_the_store(tmp_path: Path) -> None:
    folder, given = standard_folder(tmp_path, hf_tokenizer_name="of/the-folder"), context(tmp_path)
    chosen = config(evaluation={"signal_clip": folder.as_posix(), "measure_clip": folder.as_posix()})
    plan = start.run(RawData(), chosen, given, tmp_path)
    assert plan.signal_clip is not None
    assert not [name for name in plan.signal_clip.files if name.endswith(".bin")]
    shutil.rmtree(folder)
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert StageInputs(plan, given).signal_clip.scores(picture, ["woman surfing"]).isfinite().all()


def test_everything_is_tried_and_told_before_hours_of_encoding(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Evaluators are tried as they lie in the store; the estimate counts the encoding that follows it."""

    class Stop(Exception):
        pass

    tried: list[Path] = []
    loading = ClipScorer.load

    def load(folder: Path, device: torch.device) -> ClipScorer:
        tried.append(folder)
        return loading(folder, device)

    def encode(base: BaseModel, *_: object, **__: object) -> None:
        raise Stop(caplog.text)

    monkeypatch.setattr(start.ClipScorer, "load", load)
    monkeypatch.setattr(start, "prepare_source", encode)
    with caplog.at_level("INFO"), pytest.raises(Stop, match=r"(?s)estimates for cpu, .* start .* sum "):
        start.run(RawData(), config(), context(root), root)
    assert len(tried) == 2
    assert not [folder for folder in tried if folder == root / "clip"]


def test_evaluators_and_encoders_are_on_the_runs_device(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing computes, but everything can be moved to it."""
    tried: list[torch.device] = []

    def load(_: Path, device: torch.device) -> SimpleNamespace:
        tried.append(device)
        return SimpleNamespace(try_out=lambda size: None)

    def encode(base: BaseModel, *_: object, **__: object) -> None:
        assert base.vae.device.type == base.text_encoder.device.type == "meta"
        raise InterruptedError

    monkeypatch.setattr(start.ClipScorer, "load", load)
    monkeypatch.setattr(start, "measure_unit_costs", lambda *_: COSTS)
    monkeypatch.setattr(start, "prepare_source", encode)
    given = dataclasses.replace(context(root), device=torch.device("meta"))
    with pytest.raises(InterruptedError):
        start.run(RawData(), config(), given, root)
    assert tried == [torch.device("meta")] * 2


def test_an_input_that_was_stored_again_is_fetched_again(root: Path) -> None:
    """Links in the work folder lead to the bytes that were damaged; copies there may be damaged themselves."""
    given = context(root)
    folder = root / "input"
    folder.mkdir()
    (folder / "weights").write_bytes(b"good")
    stored = put_folder(given.store, folder)
    copy = fetch_folder(given, stored, "input") / "weights"
    source = given.store.path_of(stored.files["weights"])
    for damage in (source, copy):
        damage.chmod(0o644)
        damage.write_bytes(b"bad!")
        source.unlink()
        given.store.put_bytes(b"good")
        assert (fetch_folder(given, stored, "input") / "weights").read_bytes() == b"good"


def test_unsupported_base_is_refused_before_the_data(root: Path) -> None:
    base = write_micro_base(root / "base")
    unet = base / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"dropout": 0.1}))
    with pytest.raises(ArchitectureError, match=r"dropout=0\.1"):
        start.run(RawData(), config(base={"path": "base", "warm_start": False}), context(root), root)
    assert not list(context(root).store.objects())


def inception(path: str) -> SnapFusionConfig:
    clip = {"signal_clip": "clip", "measure_clip": "clip"}
    return config(evaluation=clip | {"features": "inception", "inception": path})


def test_inception_that_is_not_there_is_named_and_not_downloaded(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.inception names .*nowhere\.pt.*never downloaded"):
        input_identities(inception("nowhere.pt"), root, RawData())


def test_inception_of_other_bytes_is_refused(root: Path) -> None:
    (root / "planted.pt").write_bytes(b"program")
    with pytest.raises(ConfigError, match=r"planted\.pt, which is not NVIDIA's .* found 1310ca2"):
        input_identities(inception("planted.pt"), root, RawData())


def test_inception_travels_in_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "inception.pt").write_bytes(b"program")
    sha256 = hashlib.sha256(b"program").hexdigest()
    monkeypatch.setattr(input_folders, "INCEPTION_SHA256", sha256)
    chosen, given = inception("inception.pt"), context(root)
    assert sha256 in input_identities(chosen, root, RawData()).values()
    plan = start.run(RawData(), chosen, given, root)
    (root / "inception.pt").unlink()
    found = StageInputs(plan, given).inception
    assert found is not None
    assert found.read_bytes() == b"program"


def test_image_size_of_another_base_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size is 512, but the base draws 64"):
        start.run(RawData(), config(data={"limit": 4, "image_size": 512}), context(root), root)


def test_missing_shards_fail_before_the_base_is_loaded(root: Path) -> None:
    with pytest.raises(DataError, match="shard"):
        shards = config(data={"source": "webdataset", "shards": ["a-{00..01}.tar"]})
        raw_data(shards.data, root, FileHashes(root / "hashes"))


def test_stored_folder_cannot_write_outside_its_copy(root: Path) -> None:
    from artifacts_schema.references import FolderRef
    from steps.files.errors import StoreError

    given = context(root)
    ref = FolderRef(files={"../../escaped": given.store.put_bytes(b"x")})
    with pytest.raises(StoreError, match="leads out of it"):
        fetch_folder(given, ref, "base")


def test_identities_of_a_cached_run_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, steps.inputs.folders, flows.stages, flows.commands.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
