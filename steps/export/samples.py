"""What the program check feeds each component: real captions and pictures, as they are met when pictures are drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from artifacts_schema.result_configs import ProgramCheckConfig
from steps.data.prepared import PreparedData
from steps.diffusion.schedule import NoiseSchedule
from steps.export.program_check import Sample
from steps.export.wrappers import RUNTIME_SCALING_FACTOR
from steps.files.errors import ExportError
from steps.models.base import BaseModel, encode_captions, token_ids
from steps.training.randomness import keyed_normal

_SPLIT = "validation"
# What Apple's runtime normalises pictures with before it checks them.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pictures:
    """Captions, and one a caption latents (n, c, h, w) of about unit variance and pictures uint8 (n, 3, H, W)."""

    captions: tuple[str, ...]
    latents: Tensor
    images: Tensor | None = None

    @classmethod
    def of(cls, data: PreparedData, count: int) -> "Pictures":
        """`count` of the validation split, spread over it; fewer where it has fewer."""
        size = data.size(_SPLIT)
        indices = torch.linspace(0, size - 1, min(count, size)).long()
        captions = data.captions(_SPLIT)
        return cls(
            captions=tuple(captions[index] for index in indices.tolist()),
            latents=data.latents(_SPLIT, indices, seed=0, iteration=0),
            images=data.images(_SPLIT, indices),
        )


def text_samples(base: BaseModel, captions: Sequence[str]) -> Iterator[Sample]:
    """The empty caption, which guidance needs, and the given ones."""
    for row in token_ids(base.tokenizer, ["", *captions]).split(1):
        yield Sample("captions", {"input_ids": row.float()})


def unet_samples(
    base: BaseModel, pictures: Pictures, check: ProgramCheckConfig, *, batch: int, velocity: bool
) -> Iterator[Sample]:
    """Pictures with the noise of each timestep, under the empty caption and under their own.

    Of a UNet that predicts the velocity, this is what is compared, v = (eps - sigma z) / alpha: near t = 999 the
    noise made of it is almost its own input, so that it would hide any error. Of any other UNet it is the noise,
    which the network itself rounds. Raises ExportError for a timestep the schedule has not.
    """
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    _check_timesteps(check.timesteps, schedule)
    states = encode_captions(base.tokenizer, base.text_encoder, ["", *pictures.captions])
    # float16, as the program takes it; (n, width, 1, tokens)
    text = states.transpose(1, 2).unsqueeze(2).half().float()
    numbers = torch.arange(len(pictures.latents))
    noise = keyed_normal(base.latent_shape, seed=0, name="program_check", iteration=0, indices=numbers)
    for t in check.timesteps:
        now = torch.tensor([t])
        alpha, sigma = schedule.alpha(now), schedule.sigma(now)
        for index in numbers.tolist():
            z = alpha * pictures.latents[index] + sigma * noise[index]  # (1, c, h, w)
            sample = z.expand(batch, -1, -1, -1).contiguous()
            inputs = {
                "sample": sample,
                "timestep": now.float().expand(batch).contiguous(),
                "encoder_hidden_states": text[[0, index + 1][-batch:]],
            }
            recovered = {"scale": 1 / alpha, "shift": -sigma / alpha * sample} if velocity else {}
            yield Sample(f"t = {t}", inputs, **recovered)


def decoder_samples(pictures: Pictures) -> Iterator[Sample]:
    """Latents of pictures, divided as the runtime divides them."""
    for z in pictures.latents.split(1):
        yield Sample("latents", {"z": (z / RUNTIME_SCALING_FACTOR).half().float()})


def encoder_samples(pictures: Pictures) -> Iterator[Sample]:
    """Pictures in [-1, 1]. Raises ExportError without any."""
    for image in _images(pictures, "vae_encoder").split(1):
        yield Sample("pictures", {"x": (image.float() / 127.5 - 1.0).half().float()})


def safety_samples(pictures: Pictures, *, side: int) -> Iterator[Sample]:
    """Pictures of `side` as the runtime normalises them, and empty ones to filter. Raises ExportError without any."""
    mean, deviation = torch.tensor(_MEAN).reshape(1, 3, 1, 1), torch.tensor(_DEVIATION).reshape(1, 3, 1, 1)
    for image in _images(pictures, "safety_checker").split(1):
        small = functional.interpolate(image.float() / 255, (side, side), mode="bilinear", antialias=True)
        yield Sample(
            "pictures",
            {
                "clip_input": ((small - mean) / deviation).half().float(),
                "images": torch.zeros(1, 512, 512, 3),
                "adjustment": torch.zeros(1),
            },
        )


def _images(pictures: Pictures, component: str) -> Tensor:
    if pictures.images is None:
        raise ExportError(f"{component}: expected pictures to try it on, found captions and latents only")
    return pictures.images


def _check_timesteps(timesteps: Sequence[int], schedule: NoiseSchedule) -> None:
    beyond = [t for t in timesteps if t >= schedule.train_timesteps]
    if beyond:
        raise ExportError(
            f"unet: coreml_export.program_check.timesteps names {beyond}, the base's schedule ends at "
            f"{schedule.train_timesteps - 1}"
        )
