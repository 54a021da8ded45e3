"""One prompt, one noise: the picture of a student and that of its base, and how long each took."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from steps.diffusion.scheduler import GridDDIMScheduler
from steps.files.disk import file_sha256
from steps.files.errors import SnapFusionError
from steps.models.base import load_base
from steps.training.randomness import keyed_normal

_READ_BY = ("text_encoder/*.safetensors", "tokenizer/*.*")
_SHOWN = 384  # pixels: smaller pictures are shown enlarged


@dataclass(frozen=True)
class Drawn:
    """A picture, and the seconds from prompt to picture."""

    picture: Image.Image
    seconds: float


@dataclass(frozen=True)
class SideBySide:
    """Pipelines of a student and of its base; `base` is None where there is none at hand."""

    student: Any
    base: Any = None

    def draw(
        self, prompt: str, *, seed: int, guidance_scale: float, steps: int, base_steps: int
    ) -> tuple[Drawn | None, Drawn]:
        """The base's picture (None without a base) and the student's, from the noise that `draw` takes for this seed.

        Raises SnapFusionError for an empty prompt.
        """
        if not prompt.strip():
            raise SnapFusionError("Type a prompt first: what shall be drawn?")
        config = self.student.unet.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = keyed_normal(shape, seed=seed, name="draw", iteration=0, indices=torch.arange(1))
        base = self.base and _draw(self.base, prompt, noise, base_steps, guidance_scale)
        return base, _draw(self.student, prompt, noise, steps, guidance_scale)


def base_pipeline(folder: Path) -> Any:
    """A base's folder as a pipeline that samples on our grid. Raises BaseModelError."""
    base = load_base(folder)
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=GridDDIMScheduler.for_base(base.scheduler_config, prediction_type=base.prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def is_base_of(base: Path, student: Path) -> bool:
    """Whether both read a prompt with the same tokenizer and text encoder, whatever number format its weights load in."""
    found = [
        [file_sha256(file) for place in _READ_BY for file in sorted(folder.glob(place))]
        for folder in (base, student)
    ]
    return bool(found[0]) and found[0] == found[1]


def _draw(pipeline: Any, prompt: str, noise: torch.Tensor, steps: int, guidance_scale: float) -> Drawn:
    started = time.perf_counter()
    device = pipeline.unet.device
    image = pipeline(
        prompt, latents=noise.to(device), num_inference_steps=steps, guidance_scale=guidance_scale
    ).images[0]
    seconds = time.perf_counter() - started
    times = -(-_SHOWN // image.width)
    return Drawn(image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST), seconds)
