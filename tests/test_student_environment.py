"""A student's folder draws where only diffusers, transformers and torch are, and so does a copy that was saved there."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.first_picture import PACKAGES, make_environment, run_python
from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.models.base import encode_captions
from tests.students import MicroStudent, micro_student

DRAW = """
import importlib.util, sys
import torch
from diffusers import DiffusionPipeline
assert not any(importlib.util.find_spec(name) for name in ("steps", "artifacts_schema", "flows", "metaflow"))
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
pipe("red flag", latents=noise, num_inference_steps=4, guidance_scale=3.0).images[0].save(sys.argv[2])
if len(sys.argv) > 3:
    pipe.save_pretrained(sys.argv[3])
"""


def ours(student: MicroStudent) -> np.ndarray:
    """What trainer and evaluator would draw: (H, W, 3)."""
    base, noise = student.base, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    latents = sample_latents(
        student.unet, NoiseSchedule.from_config(base.scheduler_config), noise=noise,
        embeddings=encode_captions(base.tokenizer, base.text_encoder, ["red flag"]),
        empty_embedding=encode_captions(base.tokenizer, base.text_encoder, [""]),
        steps=4, guidance_scale=3.0, prediction_type="v_prediction",
    )  # fmt: skip
    return (
        decode_latents(student.decoder, latents, scaling_factor=base.scaling_factor)[0]
        .permute(1, 2, 0)
        .numpy()
    )


@pytest.mark.long
def test_it_draws_our_pictures_in_an_environment_of_three_packages(tmp_path: Path) -> None:
    student = micro_student(tmp_path)
    try:
        python = make_environment(tmp_path / "environment", "--offline", "--link-mode", "symlink")
    except subprocess.CalledProcessError:  # a cache that does not hold them
        python = make_environment(tmp_path / "again")
    assert len(PACKAGES) == 3
    for folder, picture, more in (
        (str(student.folder), "first.png", ["saved"]),
        ("saved", "second.png", []),  # a fresh process
    ):
        done = run_python(python, tmp_path, "-c", DRAW, folder, picture, *more)
        assert done.returncode == 0, done.stderr
        drawn = np.asarray(Image.open(tmp_path / picture)).astype(int)
        assert np.abs(drawn - ours(student)).max() <= 1
