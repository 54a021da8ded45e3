"""Draws a picture with nothing but the files of a bundle, as a runtime on a device would."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from artifacts_schema.bundle import REQUIRED_COMPONENTS, BundleManifest, Component
from steps.diffusion.ddim import walk
from steps.diffusion.parameterization import guided
from steps.diffusion.schedule import CLEAN, NoiseSchedule
from steps.evaluation.pictures import png
from steps.export.interpreter import ChunkedProgram, Program, load_packages
from steps.export.manifest import check_files, read_manifest
from steps.files.errors import ExportError
from steps.models.base import token_ids
from steps.training.randomness import keyed_normal


@dataclass(frozen=True)
class Picture:
    """`latents` (1, c, h, w) are scaled to unit variance, `image` (1, 3, H, W) float32 in about [-1, 1]."""

    latents: Tensor
    image: Tensor

    @property
    def pixels(self) -> Tensor:
        """uint8 (1, 3, H, W), see `to_pixels`."""
        return to_pixels(self.image)


def to_pixels(image: Tensor) -> Tensor:
    """uint8 of pictures in about [-1, 1], rounded as StableDiffusionPipeline does."""
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


class Bundle:
    """A bundle that was read back, its files checked against its manifest."""

    def __init__(
        self,
        manifest: BundleManifest,
        tokenizer: CLIPTokenizer,
        programs: dict[str, Program | ChunkedProgram],
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.text_encoder, self.unet, self.vae_decoder = (programs[name] for name in REQUIRED_COMPONENTS)
        self.schedule = NoiseSchedule.from_config(manifest.schedule)

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Raises ExportError for a file that is missing or changed, or a component that was left out."""
        manifest, _ = read_manifest(folder)
        if not manifest.complete:
            raise ExportError(
                f"expected the components {', '.join(REQUIRED_COMPONENTS)} in {folder}, found {', '.join(manifest.components)}"
            )
        check_files(folder, manifest)
        programs: dict[str, Program | ChunkedProgram] = {
            name: load_packages(name, [folder / package for package in manifest.components[name].packages])
            for name in REQUIRED_COMPONENTS
        }
        tokens = programs["text_encoder"].inputs["input_ids"][1]
        return cls(manifest, read_tokenizer(folder, tokens), programs)

    def draw(self, prompt: str, noise: Tensor, *, negative_prompt: str = "", rounded: bool = True) -> Picture:
        """One picture by DDIM on the manifest's grid and at its guidance scale, from noise (1, c, h, w).

        `rounded` rounds what the programs declare float16; the sampler itself works in float32. Raises ExportError
        for noise of another shape and for a picture that is not finite.
        """
        z = self.sample(prompt, noise, negative_prompt=negative_prompt, rounded=rounded)
        picture = Picture(z, self.decode(z, rounded=rounded))
        if not bool(torch.isfinite(picture.image).all()):
            raise ExportError(f"the bundle's picture of {prompt!r} is not finite: a float16 result overflows")
        return picture

    def sample(
        self, prompt: str, noise: Tensor, *, negative_prompt: str = "", rounded: bool = True
    ) -> Tensor:
        """The latents (1, c, h, w) of `draw`, of unit variance."""
        self._check_noise(noise)
        text = self._encode([negative_prompt, prompt], rounded)
        return walk(
            self.schedule,
            lambda z, t: self._noise(z, t, text, rounded),
            z=noise.float(),
            points=torch.tensor([*self.manifest.timesteps, CLEAN]),
            kind="epsilon",
        )

    def decode(self, latents: Tensor, *, rounded: bool = True) -> Tensor:
        """The picture (1, 3, H, W), in about [-1, 1], of latents (1, c, h, w) of unit variance."""
        divided = latents / self.manifest.runtime_scaling_factor
        return self.vae_decoder.run({"z": divided}, rounded=rounded)["image"]

    def guided(self, guidance_scale: float) -> "Bundle":
        """The same bundle, drawing at another guidance scale than its manifest recommends."""
        manifest = self.manifest.model_copy(update={"guidance_scale": guidance_scale})
        programs: dict[str, Program | ChunkedProgram] = {
            name: getattr(self, name) for name in REQUIRED_COMPONENTS
        }
        return Bundle(manifest, self.tokenizer, programs)

    def with_programs(self, programs: Mapping[Component, Program | ChunkedProgram]) -> "Bundle":
        """The same bundle with other programs in the place of some of its own."""
        own: dict[str, Program | ChunkedProgram] = {name: getattr(self, name) for name in REQUIRED_COMPONENTS}
        return Bundle(self.manifest, self.tokenizer, own | dict(programs))

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """int64 (n, tokens), padded and cut."""
        return token_ids(self.tokenizer, prompts)

    def _encode(self, prompts: Sequence[str], rounded: bool) -> Tensor:
        """(n, width, 1, tokens), as the UNet's program takes it."""
        states = [
            self.text_encoder.run({"input_ids": row.float()}, rounded=rounded)["last_hidden_state"]
            for row in self.token_ids(prompts).split(1)
        ]
        return torch.cat(states).transpose(1, 2).unsqueeze(2)

    def _check_noise(self, noise: Tensor) -> None:
        if tuple(noise.shape) != self.noise_shape:
            raise ExportError(f"expected noise of the shape {self.noise_shape}, found {tuple(noise.shape)}")

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(1, c, h, w) of the noise that one picture is drawn from."""
        return (1, *self.unet.inputs["sample"][1:])

    def _noise(self, z: Tensor, t: Tensor, text: Tensor, rounded: bool) -> Tensor:
        """The guided noise, in one call of a UNet of batch 2 or two of batch 1."""
        batch = self.unet.inputs["sample"][0]
        parts = []
        for half in text.split(batch):
            inputs = {
                "sample": z.expand(batch, -1, -1, -1),
                "timestep": t.float().repeat(batch),
                "encoder_hidden_states": half,
            }
            parts.append(self.unet.run(inputs, rounded=rounded)["noise_pred"])
        unconditional, conditional = torch.cat(parts).split(1)
        return guided(conditional=conditional, unconditional=unconditional, w=self.manifest.guidance_scale)


def draw_png(
    folder: Path, prompt: str, *, negative_prompt: str = "", seed: int = 0, rounded: bool = True
) -> bytes:
    """One picture as PNG bytes, from the noise that `snapfusion draw` draws with.

    Raises ExportError for an empty prompt, and as `Bundle.open` and `Bundle.draw` do.
    """
    if not prompt.strip():
        raise ExportError("expected a prompt, found an empty one")
    bundle = Bundle.open(folder)
    shape = bundle.noise_shape[1:]
    noise = keyed_normal(shape, seed=seed, name="draw", iteration=0, indices=torch.arange(1))
    return png(bundle.draw(prompt, noise, negative_prompt=negative_prompt, rounded=rounded).pixels[0])


def read_tokenizer(folder: Path, tokens: int) -> CLIPTokenizer:
    """The tokenizer that vocab.json and merges.txt describe, for captions of `tokens` tokens.

    Apple's runtime knows these two files only, and CLIP's own names for start and end. Raises ExportError when
    they are missing or do not name them.
    """
    try:
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ExportError(f"expected vocab.json and merges.txt in {folder}: {error}") from error
    for token in ("<|startoftext|>", "<|endoftext|>"):
        if token not in vocab:
            raise ExportError(
                f"{folder / 'vocab.json'} has no {token}, with which every caption begins or ends"
            )
    pairs: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=tokens)
