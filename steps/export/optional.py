"""Components that a runtime can do without: the picture encoder and the safety checker."""

import copy
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from torch.nn import functional

from steps.export.wrappers import RUNTIME_SCALING_FACTOR
from steps.files.errors import BaseModelError, ExportError
from steps.models.whole import load_whole

_STRICTER = 0.01  # what one match among the special concepts adds to every score, as in diffusers


class EncoderForExport(nn.Module):
    """Encoder of an AutoencoderKL (copied): moments of the latents, for a runtime that multiplies by 0.18215.

    The difference to the model's own `scaling_factor` goes into the last convolution: means are multiplied by
    factor = scaling_factor / 0.18215, and 2 ln(factor) is added to the logarithms of the variances.
    """

    def __init__(self, vae: AutoencoderKL, scaling_factor: float) -> None:
        super().__init__()
        if not scaling_factor > 0:
            raise ExportError(f"vae_encoder: scaling_factor must be positive, found {scaling_factor}")
        self.factor = scaling_factor / RUNTIME_SCALING_FACTOR
        self.encoder = copy.deepcopy(vae.encoder)
        self.quant_conv = copy.deepcopy(vae.quant_conv)
        if self.factor != 1.0:
            last = self.encoder.conv_out if self.quant_conv is None else self.quant_conv
            channels = last.out_channels // 2
            with torch.no_grad():
                last.weight[:channels].mul_(self.factor)
                last.bias[:channels].mul_(self.factor)
                last.bias[channels:].add_(2.0 * math.log(self.factor))

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) in [-1, 1] to (1, 2C, h, w): means, then logarithms of variances."""
        moments: Tensor = self.encoder(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)


class SafetyCheckerForExport(nn.Module):
    """diffusers' StableDiffusionSafetyChecker without branches: cosines to known concepts against thresholds.

    The concepts' vectors are brought to length 1 beforehand, in float32.
    """

    def __init__(self, checker: StableDiffusionSafetyChecker) -> None:
        super().__init__()
        self.vision_model = checker.vision_model
        self.visual_projection = checker.visual_projection
        self.register_buffer("concepts", functional.normalize(checker.concept_embeds.detach()))
        self.register_buffer("special", functional.normalize(checker.special_care_embeds.detach()))
        self.register_buffer("thresholds", checker.concept_embeds_weights.detach().clone())
        self.register_buffer("special_thresholds", checker.special_care_embeds_weights.detach().clone())

    def forward(
        self, clip_input: Tensor, images: Tensor, adjustment: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """clip_input (1, 3, S, S), images (1, H, W, 3), adjustment (1,).

        Returns scores (1, concepts), 1 or 0 for unsafe (1,), and the images, black if unsafe.
        """
        seen = self.visual_projection(self.vision_model(clip_input)[1])  # (1, D)
        seen = seen / seen.square().sum(dim=1, keepdim=True).sqrt()
        special = functional.linear(seen, self.get_buffer("special"))
        special = special - self.get_buffer("special_thresholds") + adjustment
        stricter = _STRICTER * (special.amax(dim=1, keepdim=True) > 0).float()  # (1, 1)
        scores = functional.linear(seen, self.get_buffer("concepts"))
        scores = scores - self.get_buffer("thresholds") + stricter
        unsafe = (scores.amax(dim=1) > 0).float()  # (1,)
        return scores, unsafe, images * (1.0 - unsafe).reshape(-1, 1, 1, 1)


def load_safety_checker(base: Path) -> StableDiffusionSafetyChecker:
    """The base's safety checker, in float32. Raises ExportError for a base without one."""
    folder = base / "safety_checker"
    try:
        checker = load_whole(StableDiffusionSafetyChecker, folder)
    except BaseModelError as error:
        raise ExportError(
            f"safety_checker: expected the base's own in {folder}: {error}; leave it out of coreml_export.components"
        ) from error
    loaded: StableDiffusionSafetyChecker = checker.eval().requires_grad_(False)
    return loaded
