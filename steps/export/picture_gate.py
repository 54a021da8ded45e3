"""The pictures of a bundle some of whose components are replaced, against torch's on the same noise."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from artifacts_schema.bundle import Component, DrawingScores
from artifacts_schema.result_configs import CoremlCompressionConfig
from steps.export.bundle_pictures import score
from steps.export.bundle_run import Bundle
from steps.export.interpreter import ChunkedProgram, Program
from steps.models.clip import ClipScorer


class PictureGate:
    """Draws `captions` from `noise` (n, c, h, w) and compares with `expected` (n, 3, H, W) in about [-1, 1]."""

    def __init__(
        self, bundle: Bundle, captions: Sequence[str], noise: Tensor, expected: Tensor, clip: ClipScorer
    ) -> None:
        self.bundle, self.captions, self.noise = bundle, captions, noise
        self.expected, self.clip = expected, clip
        self._latents: list[Tensor] | None = None

    def scores(self, programs: Mapping[Component, Program | ChunkedProgram]) -> DrawingScores:
        """With `programs` in the place of the bundle's own. The decoder alone needs no new latents."""
        bundle = self.bundle.with_programs(programs)
        if set(programs) <= {"vae_decoder"}:
            self._latents = latents = self._latents or self._sample(bundle)
        else:
            latents = self._sample(bundle)
        images = torch.cat([bundle.decode(z) for z in latents])
        return score(images, self.expected, self.captions, self.clip)

    def _sample(self, bundle: Bundle) -> list[Tensor]:
        return [
            bundle.sample(caption, z) for caption, z in zip(self.captions, self.noise.split(1), strict=True)
        ]


def missed(scores: DrawingScores, config: CoremlCompressionConfig) -> str:
    """Which gate the pictures miss, in words; empty where they miss none."""
    if not scores.worst_psnr_db >= config.min_image_psnr_db:
        return (
            f"worst picture {scores.worst_psnr_db:.1f} dB, expected {config.min_image_psnr_db:g} dB or more"
        )
    if not scores.clip_drop <= config.max_clip_drop:
        return f"CLIP score {scores.clip_drop:.4f} lower, expected {config.max_clip_drop:g} or less"
    return ""
