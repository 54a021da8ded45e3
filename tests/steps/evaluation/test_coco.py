"""COCO protocols: pairs chosen by a seed out of MS-COCO's own files, measured at 256 whatever is drawn."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.protocol import ProtocolRecord
from steps.evaluation import bench as bench_module
from steps.evaluation import freeze as freezing
from steps.evaluation.bench import Bench
from steps.evaluation.coco import Coco, coco_drafts
from steps.evaluation.pictures import resized
from steps.evaluation.protocol import pictures_of, read_protocol
from steps.files.errors import ConfigError, EvaluationError
from steps.models.base_folder import folder_identity
from steps.models.clip import ClipScorer
from steps.pretraining.micro import write_micro_openclip
from steps.stages import real_pictures, start
from tests.factories import stage_context
from tests.steps.stages.test_real_pictures import brightness

COUNT = 60
SIDE = 16


def coco(folder: Path, *, count: int = COUNT, without: tuple[int, ...] = (), **changes: Any) -> Path:
    """A captions file with two captions a picture, and the pictures beside it, all but `without`."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"info": {"year": 2014}, "licenses": [], "images": [], "annotations": []}
    for number in range(count):
        name = f"COCO_val2014_{number:012d}.jpg"
        content["images"].append({"id": 1000 + number, "file_name": name, "height": 24, "width": 32})
        for turn in range(2):
            text = f"A thing number {number} seen {'twice' if turn else 'once'}.\n"
            content["annotations"].append(
                {"id": 2 * number + turn, "image_id": 1000 + number, "caption": text}
            )
        if number not in without:
            # Grey squares between black bars: only the centre is measured.
            picture = Image.new("L", (32, 24))
            picture.paste(40 + 3 * number, (4, 0, 28, 24))
            picture.save(folder / name)
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps(content | changes))
    return path


def drafts(path: Path, test: int = 30, validation: int = 20, seed: int = 0) -> Any:
    found = Coco.read(path, path.parent)
    return coco_drafts(found, found, {"test": test, "validation": validation}, seed=seed, size=SIDE)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both protocols, frozen by the command with a real OpenCLIP model of a few thousand weights."""
    folder = tmp_path_factory.mktemp("coco")
    path = coco(folder / "val2014")
    write_micro_openclip(folder / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "load_features", lambda *_: brightness)
        patch.setattr(freezing, "features_identity", lambda name: "weights")
        command = f"freeze --coco {path} --pictures {path.parent} --captions 30 --validation-captions 20 --image-size {SIDE}"
        clips = (
            f" --test-clip {folder / 'clip'} --validation-clip {folder / 'clip'} --output {folder / 'frozen'}"
        )
        patch.setattr(sys, "argv", (command + clips).split())
        freezing.main()
    return folder / "frozen"


@pytest.fixture
def inputs(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a stage is given: these protocols, and a base that draws 32 x 32."""
    monkeypatch.setattr(bench_module, "load_features", lambda *_: brightness)
    monkeypatch.setattr(bench_module, "features_identity", lambda name: "weights")
    clip = ClipScorer.load(frozen.parent / "clip")
    base = SimpleNamespace(image_size=32, latent_shape=(4, 4, 4), scheduler_config={}, scaling_factor=1.0)
    return SimpleNamespace(
        protocols=frozen,
        inception=None,
        signal_clip=clip,
        measure_clip=clip,
        base=base,
        identity=lambda name: folder_identity(frozen.parent / "clip"),
    )


def test_a_run_measures_on_coco_from_the_frozen_files_alone(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = stage_context(tmp_path, "real_pictures")
    record = real_pictures.run(inputs, SnapFusionConfig(), context)
    assert {name: len(split.captions) for name, split in record.splits.items()} == {
        "validation": 20,
        "test": 30,
    }
    bench = Bench(inputs, "test", "efficientnet_lite0", context)
    drawn: list[Tensor] = []

    def decode(decoder: Any, latents: Tensor, scaling_factor: float) -> Tensor:
        drawn.append(torch.randint(0, 256, (len(latents), 3, 32, 32), dtype=torch.uint8))
        return drawn[-1]

    monkeypatch.setattr(bench_module, "sample_latents", lambda unet, schedule, **given: given["noise"])
    monkeypatch.setattr(bench_module, "decode_latents", decode)
    monkeypatch.setattr(bench_module, "NoiseSchedule", SimpleNamespace(from_config=lambda config: None))
    monkeypatch.setattr(bench_module, "_TOGETHER", 16)
    monkeypatch.setattr(type(bench.subject), "embeddings", lambda *_: (None, None))
    given: Any = {"steps": 8, "prediction_type": "v_prediction", "sampler": "ddim"}
    images = bench.draw(None, None, 30, 3.0, **given)  # type: ignore[arg-type]
    assert [len(part) for part in drawn] == [16, 14]
    assert torch.equal(images, resized(torch.cat(drawn), SIDE))
    reference = real_pictures.load_reference(context.store, record.splits["test"])
    point = bench.measure(images, bench.drawn(30), 3.0, reference)
    assert point.kernel_distance.n == 30
    assert point.seed_diversity is None  # every caption is drawn once


def test_a_protocol_holds_pairs_with_their_own_pictures(frozen: Path) -> None:
    protocol = read_protocol(frozen / "test.json")
    assert (protocol.source, protocol.image_size, protocol.pictures) == ("coco", SIDE, 30)
    for item, image in zip(protocol.real, pictures_of(protocol, protocol.real, frozen), strict=True):
        number = int(Path(item.name).stem[-12:])
        assert item.caption.startswith(f"A thing number {number} seen ")
        assert float(image.float().mean()) == pytest.approx(40 + 3 * number, abs=2)


def test_validation_has_none_of_tests_pictures(frozen: Path) -> None:
    test, validation = (read_protocol(frozen / f"{role}.json") for role in ("test", "validation"))
    assert not {item.name for item in test.real} & {item.name for item in validation.real}


def test_fewer_pairs_lie_among_more_and_a_seed_chooses(tmp_path: Path) -> None:
    path = coco(tmp_path)
    few, many, other = (
        set(zip(draft.held_out.names, draft.held_out.captions, strict=True))
        for draft in (drafts(path, 16)[1], drafts(path, 30)[1], drafts(path, 16, seed=1)[1])
    )
    assert few < many
    assert len(few & other) < 16
    assert len({text.split()[-1] for _, text in many}) == 2  # of several captions not always the first


def test_a_caption_of_two_pictures_is_taken_once(tmp_path: Path) -> None:
    path = coco(tmp_path, count=40)
    content = json.loads(path.read_text())
    for item in content["annotations"][::2]:
        item["caption"] = "A man riding a wave."
    path.write_text(json.dumps(content))
    texts = [text for draft in drafts(path, 20, 20) for text in draft.held_out.captions]
    assert len(texts) == len(set(texts)) == 40


def test_missing_pictures_are_refused_beyond_the_counted_limit(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"of 30 pictures .* are missing .*_0000000000\d\d\.jpg \(missing\)"
    ):
        drafts(coco(tmp_path, without=tuple(range(0, COUNT, 2))))


def test_few_missing_or_damaged_pictures_are_replaced_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.evaluation.coco.MOST_UNUSABLE", 0.1)
    path = coco(tmp_path)
    first, second = drafts(path)[1].held_out.names[:2]
    (tmp_path / first).unlink()
    (tmp_path / second).write_bytes(b"no picture")
    draft = drafts(path)[1]
    assert len(draft.held_out.names) == len(draft.held_out.images) == 30
    assert not {first, second} & set(draft.held_out.names)
    assert f"{first} (missing), {second} (corrupt_image)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]},
            "images holds the id 7",
        ),
        ({"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}]}, "the file a.jpg"),
        ({"annotations": [{"id": 1, "image_id": 1000, "caption": "x"}] * 2}, "annotations holds the id 1"),
        ({"annotations": [{"id": 1, "image_id": 5, "caption": "x"}]}, "of the picture 5, which images lacks"),
        ({"annotations": [{"id": 1, "image_id": 1000}]}, r"annotations\.0\.caption: Field required"),
        ({"images": [{"id": 7, "file_name": "../a.jpg"}], "annotations": []}, "files in one folder"),
        ({"annotations": []}, "test: expected 30 pairs, .* has 0"),
    ],
)
def test_what_is_no_captions_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        drafts(coco(tmp_path, **change))


def test_pairs_that_do_not_suffice_for_both_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"validation: expected 20 pairs, .* has 0 .*--validation-coco"):
        drafts(coco(tmp_path, count=30))


def test_a_base_that_draws_smaller_pictures_is_refused(frozen: Path) -> None:
    protocol: ProtocolRecord = read_protocol(frozen / "test.json")
    assert [bool(protocol.why_not_drawn_at(size)) for size in (8, 16, 32)] == [True, False, False]
    own = protocol.model_copy(update={"source": "folder"})
    assert "the base draws 32" in own.why_not_drawn_at(32)


def test_a_protocol_that_does_not_fit_the_run_is_refused_before_anything_is_encoded(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "features_identity", lambda name: "weights")
    clip = SimpleNamespace(identity=lambda: folder_identity(frozen.parent / "clip"))
    stored: Any = {"signal_clip": clip, "measure_clip": clip}

    def check(size: int, **evaluation: Any) -> None:
        config = parse_config({"evaluation": {"protocols": "coco", **evaluation}})
        start._check_protocols(frozen, config, stored, size)

    check(32)
    with pytest.raises(
        ConfigError, match=r"evaluation\.protocols: validation is of pictures of 16 .* the base draws 8"
    ):
        check(8)
    with pytest.raises(ConfigError, match=r"apart_pictures is 8, but the protocol test has no captions"):
        check(32, apart_pictures=8)
