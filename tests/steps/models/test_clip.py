"""Evaluator models: packaged weights fit, text towers agree, folders are checked."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from steps.evaluation import features
from steps.evaluation.features import EfficientNetLite0, load_features
from steps.evaluation.pictures import grid, png
from steps.files.errors import EvaluationError
from steps.models.clip import CONFIG, WEIGHTS, ClipScorer, build_clip, encode_text, tokenize
from steps.pretraining.micro import write_micro_openclip

ASSETS = Path(__file__).resolve().parents[3] / "assets" / "evaluators"
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 600, "width": 16, "heads": 2, "layers": 1},
}


def standard_folder(folder: Path, *, preprocess: dict[str, Any] | None = None, **text: Any) -> Path:
    """A folder as OpenCLIP's own saving function leaves it, pickle beside the safetensors included."""
    micro = write_micro_openclip(folder / "micro")
    config = TINY | {"text_cfg": TINY["text_cfg"] | text}
    source = folder / "source"
    source.mkdir()
    (source / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}))
    model = open_clip.create_model(f"local-dir:{source}")
    save_for_hf(model, HFTokenizer(str(micro)), config, str(folder / "standard"))
    return folder / "standard"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    return ClipScorer.load(write_micro_openclip(tmp_path_factory.mktemp("clip") / "openclip"))


def pictures(n: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_efficientnet_weights_know_pictures() -> None:
    found = EfficientNetLite0()(pictures(3))
    assert found.shape == (3, 1280)
    assert torch.isfinite(found).all()
    # Loaded into the wrong places the network would be a constant; the packaged ImageNet weights are not.
    assert (found[0] - found[1]).abs().max() > 0.05
    assert (found == 0).float().mean() < 0.95


def test_features_are_computed_on_the_device_that_is_named() -> None:
    found: Any = load_features("efficientnet_lite0", device=torch.device("meta"))
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}
    with pytest.raises(NotImplementedError, match="meta"):  # computed there, and brought back
        found(pictures(1))


def test_unknown_features_are_refused() -> None:
    with pytest.raises(EvaluationError, match="found 'vgg'"):
        load_features("vgg")


def test_short_text_encoding_equals_openclips_own(scorer: ClipScorer) -> None:
    tokens = scorer.tokens(["red flag", "woman surfing dark skin tone", ""])
    with torch.no_grad():
        expected = scorer.model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(encode_text(scorer.model, tokens), expected, rtol=1e-4, atol=1e-5)


def test_scores_are_cosines_of_matching_pairs(scorer: ClipScorer) -> None:
    images, captions = pictures(4), ["a", "b", "c", "d"]
    both = scorer.image_embeddings(images) @ scorer.text_embeddings(captions).T
    torch.testing.assert_close(scorer.scores(images, captions), both.diagonal())


def test_scores_need_one_caption_per_picture(scorer: ClipScorer) -> None:
    with pytest.raises(EvaluationError, match="found 1 for 2"):
        scorer.scores(pictures(2), ["a"])


def test_folder_without_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"open_clip_config\.json and open_clip_model\.safetensors .* in /"
    ):
        ClipScorer.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        {"hf_tokenizer_name": "of/the-folder"},
        {"vocab_size": 49408},
        {"vocab_size": 49408, "pool_type": "last"},
    ],
    ids=["own tokenizer", "OpenAI's tokenizer", "other pooling"],
)
def test_a_folder_of_openclips_own_saving_function_works(tmp_path: Path, text: dict[str, Any]) -> None:
    """Its configuration names no size; preprocessing and scores are OpenCLIP's own."""
    folder = standard_folder(tmp_path, preprocess={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}, **text)
    assert (folder / "open_clip_pytorch_model.bin").is_file()
    found = ClipScorer.load(folder)
    found.try_out(512)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    images, captions = pictures(2)[:, :, :40], ["red flag", "woman’s hat"]
    tall = [preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    with torch.no_grad():
        texts = model.eval().encode_text(
            open_clip.get_tokenizer(f"local-dir:{folder}")(captions), normalize=True
        )
        torch.testing.assert_close(
            found.image_embeddings(images), model.encode_image(torch.stack(tall), True)
        )
    torch.testing.assert_close(found.text_embeddings(captions), texts, rtol=1e-4, atol=1e-5)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    folder = standard_folder(tmp_path)
    (folder / WEIGHTS).rename(folder / "model.safetensors")  # OpenCLIP takes the pickle before this
    with pytest.raises(EvaluationError, match="weights as pickles are never read"):
        ClipScorer.load(folder)


@pytest.mark.parametrize(
    ("part", "change"),
    [("text_cfg", {"hf_model_name": "org/bert"}), ("vision_cfg", {"timm_model_name": "hf-hub:org/vit"})],
)
def test_a_model_that_asks_a_hub_is_refused(tmp_path: Path, part: str, change: dict[str, str]) -> None:
    folder = standard_folder(tmp_path)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"][part] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(
        EvaluationError, match=r"'(org/bert|hf-hub:org/vit)', for which OpenCLIP asks a model hub"
    ):
        ClipScorer.load(folder)


def test_a_tokenizer_never_brings_its_own_code(tmp_path: Path) -> None:
    folder = standard_folder(
        tmp_path, hf_tokenizer_name="x", tokenizer_kwargs={"trust_remote_code": True, "clean": "lower"}
    )
    code = "raise SystemExit('the folder ran its own code')"
    (folder / "planted.py").write_text(code)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "Planted"}
    path.write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["planted.Planted", None]}}))
    with pytest.raises(EvaluationError, match="cannot be loaded"):
        ClipScorer.load(folder)


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = standard_folder(tmp_path, vocab_size=300)
    with pytest.raises(EvaluationError, match=r"has \d+ entries, but vocab_size .* is 300"):
        ClipScorer.load(folder)


@pytest.mark.parametrize("name", ["openclip_signal", "openclip_measure"])
def test_shipped_evaluators_score_as_they_were_trained(name: str) -> None:
    """Bit by bit what the model makes of pictures in [-1, 1] and of the tokens of the folder's CLIPTokenizer."""
    folder = ASSETS / name
    model = build_clip(json.loads((folder / CONFIG).read_text())["model_cfg"]).eval().requires_grad_(False)
    model.load_state_dict({key: value.float() for key, value in load_file(folder / WEIGHTS).items()})
    found, captions = ClipScorer.load(folder), ["woman’s hat", "red flag"]
    with torch.no_grad():
        expected = model.encode_image((pictures(3).float() / 255 - 0.5) / 0.5, normalize=True)
        assert torch.equal(found.image_embeddings(pictures(3)), expected)
        tokens = tokenize(CLIPTokenizer.from_pretrained(folder, local_files_only=True), captions)
        assert torch.equal(found.text_embeddings(captions), encode_text(model, tokens))


def test_an_evaluator_computes_on_the_device_that_is_named(clip_folder: Path) -> None:
    found = ClipScorer.load(clip_folder, torch.device("meta"))
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}
    for use in (lambda: found.image_embeddings(pictures(1)), lambda: found.text_embeddings(["a"])):
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            use()


def test_openclip_is_quiet(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ClipScorer.load(clip_folder)
    assert not [record for record in caplog.records if record.name == "root"]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return write_micro_openclip(tmp_path / "clip")


Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda w: {n: v for n, v in w.items() if not n.startswith("visual")},
            r"Missing key\(s\) in state_dict: .*visual\.class_embedding",
        ),
        (lambda w: w | {"ln_final.weight": torch.zeros(3)}, r"size mismatch for ln_final\.weight"),
        (
            lambda w: w | {"visual.extra": torch.zeros(3)},
            r"Unexpected key\(s\) in state_dict: .*visual\.extra",
        ),
        (  # OpenCLIP would interpolate it without a word
            lambda w: w | {"visual.positional_embedding": torch.zeros(10, 16)},
            r"of another shape \(visual\.positional_embedding\)",
        ),
    ],
    ids=["missing", "of another shape", "too much", "interpolated"],
)
def test_evaluator_without_its_own_weights_is_refused(
    clip_folder: Path, change: Callable[[Weights], Weights], said: str
) -> None:
    save_file(change(load_file(clip_folder / WEIGHTS)), clip_folder / WEIGHTS)
    with pytest.raises(EvaluationError, match=f"clip.*{said}"):
        ClipScorer.load(clip_folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_evaluator_that_cannot_be_read_is_named(clip_folder: Path, name: str) -> None:
    (clip_folder / name).write_bytes((clip_folder / name).read_bytes()[:100])
    with pytest.raises(EvaluationError, match="evaluator.*/clip.* cannot be (read|loaded)"):
        ClipScorer.load(clip_folder)


class TinyInception(torch.nn.Module):
    """Stands for NVIDIA's program: `layers` makes 2,048 features of pictures in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((32, 64)), torch.nn.Conv2d(3, 1, 1))


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(TinyInception()).save(str(path))
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_inception_makes_features_of_its_file(inception_file: Path) -> None:
    grey = torch.stack([torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (128, 255)])
    found = load_features("inception", inception_file)(grey)
    layers = torch.jit.load(str(inception_file)).layers
    assert found.shape == (2, 2048)
    for row, value in zip(found, (0.0, 127 / 128), strict=True):
        expected = layers(torch.full((1, 3, 299, 299), value)).flatten()
        torch.testing.assert_close(row, expected)


def test_a_program_of_other_bytes_is_never_run(inception_file: Path) -> None:
    with inception_file.open("ab") as file:
        file.write(b"planted")
    with pytest.raises(EvaluationError, match=r"inception-2015-12-05\.pt: expected SHA-256 .*not loaded"):
        load_features("inception", inception_file)


def test_inception_without_a_file_is_refused() -> None:
    with pytest.raises(EvaluationError, match="without a file"):
        load_features("inception")


def test_grid_places_pictures_in_rows() -> None:
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2, 3)])
    canvas = grid(images, columns=2, gap=1)
    assert canvas.shape == (3, 9, 9)
    assert canvas[0, 0, 0] == 1
    assert canvas[0, 0, 5] == 2
    assert canvas[0, 5, 0] == 3
    assert canvas[0, 5, 5] == 255
    assert png(canvas).startswith(b"\x89PNG")
