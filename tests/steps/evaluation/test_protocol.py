"""Frozen protocols: an identity of their own, nothing edited, nothing measured with something else."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from artifacts_schema.base import Provenance
from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.protocol import ProtocolRecord
from artifacts_schema.readers import read_record
from steps.evaluation import bench as bench_module
from steps.evaluation import freeze as freezing
from steps.evaluation.bench import Bench
from steps.evaluation.freeze_sources import own_drafts
from steps.evaluation.protocol import check_environment, check_evaluator, read_protocol, write_protocol
from steps.files.errors import EvaluationError
from steps.inputs.folders import FROZEN_PROTOCOLS, other_folders
from steps.models.base_folder import folder_identity
from steps.stages import real_pictures
from tests.factories import stage_context
from tests.steps.stages.test_real_pictures import Clip, Pictures, brightness, stand_in

ROOT = Path(__file__).parents[3]
WORDS = ("red", "green", "blue", "dark", "light", "tiny", "large", "old")


@pytest.fixture(autouse=True)
def light_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_module, freezing):
        monkeypatch.setattr(module, "load_features", lambda *_: brightness)
        monkeypatch.setattr(module, "features_identity", lambda name: "weights")
    monkeypatch.setattr(freezing, "ClipScorer", SimpleNamespace(load=lambda folder: Clip()))


def own_source(folder: Path, **changes: Any) -> Path:
    """Captions of shoes with two grey pictures each, and their source file."""
    sections: dict[str, Any] = {"subject": "shoes"}
    for number, role in enumerate(("validation", "test")):
        captions = []
        for place, word in enumerate(WORDS):
            names = [f"{role}-{word}-{side}.png" for side in "ab"]
            for side, name in enumerate(names):
                Image.new("L", (20, 16), 40 + 90 * number + 8 * place + side).save(folder / name)
            captions.append({"text": f"{word} {'shoe' if number else 'boot'}", "pictures": names})
        sections[role] = {"pictures": 32, "captions": captions}
    sections["test"] |= {"novel": sections["test"]["captions"][:3]}
    sections |= changes
    path = folder / "own.json"
    path.write_text(json.dumps(sections))
    return path


def frozen(folder: Path) -> Path:
    """The frozen protocols of the shoes."""
    clip = folder / "clip"
    clip.mkdir(parents=True)
    for draft in own_drafts(own_source(folder), 16):
        path = folder / "frozen" / f"{draft.role}.json"
        write_protocol(freezing.freeze(draft, clip, "efficientnet_lite0", None), path)
        freezing._pack(draft, path.with_suffix(".safetensors"))
    return folder / "frozen"


def inputs(folder: Path) -> Any:
    """What a stage is given, with these protocols."""
    found = stand_in(Pictures())
    found.protocols = folder
    found.identity = lambda name: folder_identity(folder.parent / "clip")
    return found


def test_a_run_measures_on_the_frozen_captions_whatever_its_data(tmp_path: Path) -> None:
    folder, context = frozen(tmp_path), stage_context(tmp_path, "real_pictures")
    record = real_pictures.run(inputs(folder), SnapFusionConfig(), context)
    assert record.splits["test"].captions == tuple(f"{word} shoe" for word in WORDS)
    bench = Bench(inputs(folder), "test", "efficientnet_lite0", context)
    frozen_hash = read_protocol(folder / "test.json").identity()
    assert bench.protocol(record.splits["test"], 32)["frozen"] == frozen_hash
    novel = Bench(inputs(folder), "test", "efficientnet_lite0", context, "novel")
    assert novel.texts == [f"{word} shoe" for word in WORDS[:3]]
    with pytest.raises(EvaluationError, match="no 'seen' captions"):
        Bench(inputs(folder), "test", "efficientnet_lite0", context, "seen")


def test_versions_and_threads_are_no_part_of_the_identity(tmp_path: Path) -> None:
    protocol = read_protocol(frozen(tmp_path) / "test.json")
    assert protocol.provenance is not None
    other = protocol.model_copy(update={"provenance": Provenance(created_at="later", threads=7)})
    assert other.identity() == protocol.identity()
    assert read_record(protocol.to_json()) == protocol


def test_an_edited_protocol_is_refused(tmp_path: Path) -> None:
    path = frozen(tmp_path) / "test.json"
    path.write_text(path.read_text().replace('"red shoe"', '"red boot"'))
    with pytest.raises(EvaluationError, match="was edited after it was frozen"):
        read_protocol(path)


def test_a_missing_protocol_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"steps\.evaluation\.freeze"):
        read_protocol(tmp_path / "test.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("other", "efficientnet_lite0", "weights"), "with the evaluator"),
        (("", "inception", "weights"), "with the features efficientnet_lite0, found inception"),
        (("", "efficientnet_lite0", "others"), "with the weights of the features"),
    ],
)
def test_another_instrument_is_refused(tmp_path: Path, given: tuple[str, str, str], message: str) -> None:
    protocol = read_protocol(frozen(tmp_path) / "test.json")
    evaluator, features, weights = given
    with pytest.raises(EvaluationError, match=message):
        check_evaluator(protocol, evaluator or protocol.evaluator_sha256, features, weights)


def test_an_evaluator_of_another_run_is_refused(tmp_path: Path) -> None:
    given = inputs(frozen(tmp_path))
    given.identity = lambda name: "retrained"
    with pytest.raises(EvaluationError, match="found retrained; measure with that one"):
        Bench(given, "test", "efficientnet_lite0", stage_context(tmp_path, "evaluation"))


def test_an_environment_that_deviates_is_refused(tmp_path: Path) -> None:
    class Elsewhere(Clip):
        def image_embeddings(self, images: Tensor) -> Tensor:
            return super().image_embeddings(images) * 1.002

    given = inputs(frozen(tmp_path))
    given.measure_clip = Elsewhere()
    with pytest.raises(EvaluationError, match=r"calibration failed: protocol 'test' expects clip_score"):
        real_pictures.run(given, SnapFusionConfig(), stage_context(tmp_path, "real_pictures"))


def test_every_instrument_is_calibrated(tmp_path: Path) -> None:
    protocol = read_protocol(frozen(tmp_path) / "test.json")
    assert len(protocol.calibration) == 16
    check_environment(protocol, protocol.calibration)
    for name in ("clip_score", "retrieval_margin", "kernel", "feature_distance"):
        first = protocol.calibration[0]
        for off in (1.0, float("nan")):
            changed = first.model_copy(update={name: getattr(first, name) + off})
            with pytest.raises(EvaluationError, match=f"expects {name}"):
                check_environment(protocol, (changed, *protocol.calibration[1:]))


def test_changed_pixels_are_refused(tmp_path: Path) -> None:
    folder = frozen(tmp_path)
    bench = Bench(inputs(folder), "test", "efficientnet_lite0", stage_context(tmp_path, "x"))
    protocol = read_protocol(folder / "test.json")
    images = {item.name: torch.zeros(3, 16, 16, dtype=torch.uint8) for item in protocol.real}
    save_file(images, folder / "test.safetensors")
    with pytest.raises(EvaluationError, match="'test-red-a.png' .'red shoe'. is not the one that was frozen"):
        bench.subject.images()


def test_captions_twice_are_refused(tmp_path: Path) -> None:
    path = own_source(tmp_path)
    source = json.loads(path.read_text())
    source["test"]["captions"].append(source["test"]["captions"][0])
    path.write_text(json.dumps(source))
    with pytest.raises(EvaluationError, match=r"test\.captions has 'red shoe' more than once"):
        own_drafts(path, 16)


def test_captions_on_both_sides_are_refused(tmp_path: Path) -> None:
    path = own_source(tmp_path)
    source = json.loads(path.read_text())
    source["test"]["captions"][0]["text"] = "red boot"
    path.write_text(json.dumps(source))
    with pytest.raises(EvaluationError, match="'red boot' is in validation and in test"):
        own_drafts(path, 16)


def test_unknown_words_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("red green blue dark light large old boot shoe\n")
    with pytest.raises(EvaluationError, match="the words 'tiny' are in no training caption"):
        own_drafts(own_source(tmp_path, train_captions="train.txt"), 16)


def test_a_source_may_be_toml_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('subject = "shoes"\n[test]\npictures = 0\ncaptions = []\n')
    with pytest.raises(EvaluationError, match=r"(?s)validation: Field required.*test\.pictures: .*found 0"):
        own_drafts(path, 16)


def test_too_few_pictures_make_no_protocol(tmp_path: Path) -> None:
    path = own_source(tmp_path)
    source = json.loads(path.read_text())
    source["test"]["captions"] = source["test"]["captions"][:7]
    path.write_text(json.dumps(source))
    draft = own_drafts(path, 16)[1]
    with pytest.raises(EvaluationError, match="at least 16 real pictures, found 14"):
        freezing.freeze(draft, tmp_path, "efficientnet_lite0", None)


@pytest.mark.parametrize(
    ("role", "evaluator"), [("validation", "openclip_signal"), ("test", "openclip_measure")]
)
def test_the_included_protocols_are_of_the_included_evaluators(role: str, evaluator: str) -> None:
    """After an evaluator was trained anew: python -m steps.evaluation.freeze."""
    protocol: ProtocolRecord = read_protocol(ROOT / "docs" / "protocols" / f"{role}.json")
    assert protocol.evaluator_sha256 == folder_identity(ROOT / "assets/evaluators" / evaluator)
    assert (len(protocol.captions), len(protocol.calibration)) == (240, 16)
    held_out = set(protocol.captions)
    assert not held_out & {item.caption for item in (*protocol.reference, *protocol.seen, *protocol.novel)}


def test_a_configuration_names_its_protocols() -> None:
    config = SnapFusionConfig()
    assert other_folders(config, ROOT)["protocols"] is None
    changed = config.evaluation.model_copy(update={"protocols": "frozen"})
    assert (
        other_folders(config.model_copy(update={"evaluation": changed}), ROOT)["protocols"]
        == FROZEN_PROTOCOLS
    )
