"""A student's folder: loads as a diffusers pipeline, draws what our own sampler draws, and says what it would run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from artifacts_schema.references import FolderRef
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.export.diffusers_folder import check_code, diffusers_folder, modules
from steps.files.errors import ExportError, SnapFusionError
from steps.models.base import encode_captions
from steps.models.stored import save_model
from tests.students import MicroStudent, micro_student

PROMPTS = ["woman surfing", "red flag"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> MicroStudent:
    return micro_student(tmp_path_factory.mktemp("student"))


def load(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(pipeline: DiffusionPipeline, noise: torch.Tensor) -> np.ndarray:
    drawn = pipeline(PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=3.0).images
    return np.stack([np.asarray(image) for image in drawn])


@pytest.fixture(scope="module")
def noise(student: MicroStudent) -> torch.Tensor:
    return torch.randn(2, *student.base.latent_shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def drawn(student: MicroStudent, noise: torch.Tensor) -> np.ndarray:
    return pictures(load(student.folder), noise)


def test_pictures_are_those_of_our_own_sampler(
    student: MicroStudent, noise: torch.Tensor, drawn: np.ndarray
) -> None:
    base = student.base
    latents = sample_latents(
        student.unet, NoiseSchedule.from_config(base.scheduler_config), noise=noise,
        embeddings=encode_captions(base.tokenizer, base.text_encoder, PROMPTS),
        empty_embedding=encode_captions(base.tokenizer, base.text_encoder, [""]),
        steps=4, guidance_scale=3.0, prediction_type="v_prediction",
    )  # fmt: skip
    ours = decode_latents(student.decoder, latents, scaling_factor=base.scaling_factor)
    assert drawn.std() > 1
    # One grey level: the pipeline adds up guidance in another order.
    assert np.abs(drawn.astype(int) - ours.permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1


def test_a_saved_copy_loads_and_draws_the_same(
    student: MicroStudent, noise: torch.Tensor, drawn: np.ndarray, tmp_path: Path
) -> None:
    load(student.folder).save_pretrained(tmp_path / "copy")
    check_code(tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert index["unet"] == ["evolved_unet", "EvolvedUNet"]
    assert (pictures(load(tmp_path / "copy"), noise) == drawn).all()


def test_it_holds_safetensors_and_no_pickle(student: MicroStudent) -> None:
    suffixes = {Path(name).suffix for name in student.files.files}
    assert suffixes == {".safetensors", ".json", ".txt", ".py"}
    assert student.files.files["unet/diffusion_pytorch_model.safetensors"].sha256 == student.unet_ref.sha256


def test_a_plain_unet_needs_no_source(student: MicroStudent) -> None:
    ref = save_model(student.store, student.base.unet, schema="diffusers.UNet2DConditionModel")
    files = diffusers_folder(student.store, student.base_ref, unet=ref, decoder=student.decoder_ref)
    index = json.loads(student.store.path_of(files["model_index.json"]).read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert not [name for name in files if name.startswith("unet/") and name.endswith(".py")]


def test_a_base_without_a_schedule_is_refused(student: MicroStudent) -> None:
    without = {n: r for n, r in student.base_ref.files.items() if not n.startswith("scheduler/")}
    with pytest.raises(ExportError, match="expected scheduler/scheduler_config.json in the stored base"):
        diffusers_folder(
            student.store, FolderRef(files=without), unet=student.unet_ref, decoder=student.decoder_ref
        )


def test_code_that_is_not_ours_is_refused(student: MicroStudent, tmp_path: Path) -> None:
    check_code(student.folder)
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    module, text = modules()["EvolvedUNet"]
    (tmp_path / "unet" / f"{module}.py").write_text(text)
    check_code(tmp_path)
    (tmp_path / "unet" / f"{module}.py").write_text(text + "import os\n")
    with pytest.raises(SnapFusionError, match=r"evolved_unet\.py is not the code that this version"):
        check_code(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [(None, "expected the folder of a student"), ("[", "can be read"), ('{"_class_name": "X"}', "another model")],
)  # fmt: skip
def test_a_folder_that_is_no_student_is_refused(tmp_path: Path, index: str | None, message: str) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(SnapFusionError, match=message):
        check_code(tmp_path)
