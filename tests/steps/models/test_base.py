"""What makes a base unusable is refused before anything expensive, with the file at fault."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save, save_file

from artifacts_schema.references import ObjectRef, WeightsRef
from steps.files.errors import BaseModelError, StoreError
from steps.models.base import encode_captions, load_base
from steps.models.base_folder import check_base_folder, folder_identity, put_model_folder
from steps.models.stored import load_model, save_model
from steps.pretraining.micro import write_micro_base
from steps.store import LocalStore, Store

WITH_WEIGHTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro_base(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture
def base(micro: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro, tmp_path / "base")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("component", ["unet", "safety_checker"])
def test_weights_as_pickles_alone_are_refused_with_the_file(base: Path, component: str) -> None:
    for path in (base / component).glob("*.safetensors"):
        path.unlink()
    (base / component).mkdir(exist_ok=True)
    (base / component / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BaseModelError, match=rf"{component}/pytorch_model\.bin holds pickled weights"):
        check_base_folder(base)


def test_what_a_hub_has_beside_the_weights_is_neither_hashed_nor_stored(base: Path, tmp_path: Path) -> None:
    before = folder_identity(base)
    for name in (
        "unet/diffusion_pytorch_model.bin",
        "vae/model.ckpt",
        "v1-5-pruned.ckpt",
        ".cache/huggingface/notes.json",
        "unet/.hidden.json",
        "README.md",
        ".env",
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"\x80\x04.")
    check_base_folder(base)
    assert folder_identity(base) == before
    stored = put_model_folder(LocalStore(tmp_path / "store"), base)
    assert {Path(name).suffix for name in stored.files} == {".json", ".safetensors", ".txt"}
    assert not [name for name in stored.files if "/." in f"/{name}"]
    load_base(base)


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


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_truncated_weights_are_a_clear_error(base: Path, component: str) -> None:
    path = next((base / component).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(base)


Weights = dict[str, torch.Tensor]


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    (path,) = folder.glob("*.safetensors")
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("component", "part"),
    [("unet", "mid_block"), ("vae", "decoder.conv_norm_out"), ("text_encoder", "token_embedding")],
)
def test_missing_tensors_are_never_made_up(base: Path, component: str, part: str) -> None:
    change_weights(base / component, lambda w: {n: v for n, v in w.items() if part not in n})
    with pytest.raises(BaseModelError, match=rf"/{component}: .*\.safetensors .*tensors missing .*{part}"):
        load_base(base)


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_tensors_of_another_shape_are_named(base: Path, component: str) -> None:
    def reshape(weights: Weights) -> Weights:
        first = next(iter(weights))
        return weights | {first: torch.zeros(3, 5)}

    change_weights(base / component, reshape)
    with pytest.raises(
        BaseModelError, match=rf"/{component}: .*1 tensors of another shape \(.*(bias|weight)"
    ):
        load_base(base)


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_tensors_that_the_configuration_does_not_know_are_named(base: Path, component: str) -> None:
    change_weights(base / component, lambda w: w | {"extra.weight": torch.zeros(1)})
    with pytest.raises(
        BaseModelError, match=rf"/{component}: .*1 tensors unknown to config \(extra\.weight\)"
    ):
        load_base(base)


def test_names_and_buffers_of_older_libraries_are_understood(base: Path) -> None:
    """Stable Diffusion 1.5's own files have position ids, and other names in the decoder's attention."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights: Weights) -> Weights:
        result = {}
        for name, value in weights.items():
            for new, old in older.items():
                name = name.replace(f".{new}.", f".{old}.")
            result[name] = value
        assert result.keys() != weights.keys()
        return result

    expected = load_base(base)
    change_weights(base / "vae", rename)
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    change_weights(base / "text_encoder", lambda w: {f"text_model.{n}": v for n, v in w.items()} | ids)
    found = load_base(base)
    for name in ("vae", "text_encoder"):
        state = getattr(found, name).state_dict()
        assert all(torch.equal(state[n], v) for n, v in getattr(expected, name).state_dict().items())


def test_a_folder_of_links_is_a_base(base: Path, tmp_path: Path) -> None:
    """A hub's cache: every file of a snapshot is a link to a blob without a suffix."""
    cache = tmp_path / "hub" / "models--org--name"
    links, blobs = cache / "snapshots" / "0123", cache / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in sorted(base.rglob("*")) if path.is_file()):
        link = links / file.relative_to(base)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = shutil.copy(file, blobs / str(number))
        link.symlink_to(os.path.relpath(blob, link.parent))
    check_base_folder(links)
    assert folder_identity(links) == folder_identity(base)
    store = LocalStore(tmp_path / "store")
    assert put_model_folder(store, links).identity() == put_model_folder(store, base).identity()
    (tmp_path / "named").symlink_to(links)  # base.path may itself be a link
    assert folder_identity(tmp_path / "named") == folder_identity(base)
    torch.testing.assert_close(load_base(links).unet.state_dict(), load_base(base).unet.state_dict())


@pytest.mark.parametrize(("place", "what"), [("vae/config.json", "nothing"), ("vae", "a folder")])
def test_links_that_lead_to_no_file_are_named(base: Path, tmp_path: Path, place: str, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (base / place).rename(elsewhere)
    (base / place).symlink_to(elsewhere)
    if what == "nothing":
        elsewhere.unlink()
    with pytest.raises(BaseModelError, match=rf"base/{place} is a link to .*elsewhere, which is {what}"):
        check_base_folder(base)
    with pytest.raises(StoreError, match=rf"base/{place} is a link to .*elsewhere, which is {what}"):
        put_model_folder(LocalStore(tmp_path / "store"), base)


@pytest.mark.parametrize("place", ["vae/notes.json", "credentials.txt"])
@pytest.mark.parametrize("through", [False, True])
def test_links_out_of_a_base_are_refused_and_never_stored(
    base: Path, tmp_path: Path, place: str, through: bool
) -> None:
    """A credentials file, which with a store on S3 would be uploaded; `through` a second link that lies inside."""
    secret, store = tmp_path / "secret", LocalStore(tmp_path / "store")
    secret.write_text("key")
    first = base / "inside.json"
    if through:
        first.symlink_to(secret)
    (base / place).symlink_to(first if through else secret)
    with pytest.raises(BaseModelError, match=r"is a link to .*/secret, out of the folder"):
        check_base_folder(base)
    with pytest.raises(StoreError, match=r"is a link to .*/secret, out of the folder"):
        put_model_folder(store, base)
    assert not list(store.objects())


def test_links_inside_a_base_are_followed(base: Path) -> None:
    (base / "vae" / "again.json").symlink_to("config.json")
    check_base_folder(base)


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


def test_stored_weights_that_lack_a_tensor_are_refused(micro: Path, tmp_path: Path) -> None:
    store, unet = LocalStore(tmp_path), load_base(micro).unet
    ref = save_model(store, unet, schema="diffusers.UNet2DConditionModel")
    weights = {name: value for name, value in unet.state_dict().items() if name != "conv_in.weight"}
    part = store.put_bytes(save(weights))
    with pytest.raises(StoreError, match=rf"{part.sha256} do not fit .*conv_in\.weight"):
        load_model(store, ref.model_copy(update=part.model_dump()))


def test_models_need_no_room_for_temporary_files(
    store: Store, micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = load_base(micro).unet
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    ref = save_model(store, unet, schema="diffusers.UNet2DConditionModel")
    assert load_model(store, ref).config.block_out_channels == unet.config.block_out_channels
    assert list(store.work()) == []


def test_unknown_class_of_weights_is_refused(tmp_path: Path) -> None:
    thing = ObjectRef(uri="", sha256="a" * 64, bytes=1)
    ref = WeightsRef(**thing.model_dump(), schema_id="pickle.Anything", config=thing)
    with pytest.raises(StoreError, match=r"pickle\.Anything"):
        load_model(LocalStore(tmp_path), ref)


def test_a_plain_pipeline_draws_with_it(micro: Path) -> None:
    """Without a dtype, as somebody does who only wants to look."""
    pipeline = StableDiffusionPipeline.from_pretrained(micro)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("red flag", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


def test_captions_are_encoded_as_the_pipeline_does(micro: Path) -> None:
    base = load_base(micro)
    pipeline = StableDiffusionPipeline.from_pretrained(micro, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    captions = ["red flag", ""]
    expected = pipeline.encode_prompt(captions, "cpu", 1, False)[0]
    torch.testing.assert_close(encode_captions(base.tokenizer, base.text_encoder, captions), expected)
