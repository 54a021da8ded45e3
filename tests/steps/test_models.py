"""What makes a base unusable is refused before anything expensive, with the file at fault."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from artifacts_schema.references import ObjectRef, WeightsRef
from steps.base_folder import check_base_folder, folder_identity
from steps.errors import BaseModelError, StoreError
from steps.models import encode_captions, load_base, load_model, save_model
from steps.pretraining.micro import write_micro_base
from steps.store import LocalStore


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro_base(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture
def base(micro: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro, tmp_path / "base")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pickled_weights_are_refused_with_the_file(base: Path) -> None:
    (base / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BaseModelError, match=r"diffusion_pytorch_model\.bin holds pickled weights"):
        check_base_folder(base)


@pytest.mark.parametrize("component", ["text_encoder", "tokenizer", "unet", "vae", "scheduler"])
def test_missing_component_is_named(base: Path, component: str) -> None:
    shutil.rmtree(base / component)
    with pytest.raises(BaseModelError, match=f"lacks the component '{component}'"):
        check_base_folder(base)


def test_missing_weights_are_named(base: Path) -> None:
    for path in (base / "vae").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(BaseModelError, match=r"vae has no \.safetensors"):
        check_base_folder(base)


def test_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        check_base_folder(tmp_path / "nothing")


def test_truncated_weights_are_a_clear_error(base: Path) -> None:
    path = next((base / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(base)


def test_tokenizer_that_does_not_fit_is_refused(base: Path) -> None:
    edit(base / "tokenizer" / "tokenizer_config.json", model_max_length=100)
    with pytest.raises(BaseModelError, match="100 tokens.*77 positions"):
        load_base(base)


def test_end_token_that_does_not_fit_is_refused(base: Path) -> None:
    edit(base / "text_encoder" / "config.json", eos_token_id=5)
    with pytest.raises(BaseModelError, match="eos_token_id 5"):
        load_base(base)


def test_unknown_prediction_type_is_refused(base: Path) -> None:
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(BaseModelError, match="found 'sample'"):
        load_base(base)


def test_identity_follows_content_and_not_place(base: Path, micro: Path) -> None:
    assert folder_identity(base) == folder_identity(micro)
    edit(base / "scheduler" / "scheduler_config.json", beta_end=0.02)
    assert folder_identity(base) != folder_identity(micro)


def test_weights_survive_the_store(micro: Path, tmp_path: Path) -> None:
    store, unet = LocalStore(tmp_path), load_base(micro).unet
    ref = save_model(store, unet, schema="diffusers.UNet2DConditionModel")
    found = load_model(store, ref)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in unet.state_dict().items())
    assert save_model(store, found, schema=ref.schema_id).identity() == ref.identity()


def test_unknown_class_of_weights_is_refused(tmp_path: Path) -> None:
    thing = ObjectRef(uri="", sha256="a" * 64, bytes=1)
    ref = WeightsRef(**thing.model_dump(), schema_id="pickle.Anything", config=thing)
    with pytest.raises(StoreError, match=r"pickle\.Anything"):
        load_model(LocalStore(tmp_path), ref)


def test_captions_are_encoded_as_the_pipeline_does(micro: Path) -> None:
    from diffusers import StableDiffusionPipeline

    base = load_base(micro)
    pipeline = StableDiffusionPipeline.from_pretrained(micro, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    captions = ["red flag", ""]
    expected = pipeline.encode_prompt(captions, "cpu", 1, False)[0]
    torch.testing.assert_close(encode_captions(base.tokenizer, base.text_encoder, captions), expected)
