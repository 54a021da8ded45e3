"""Pictures of a few fixed validation captions from a UNet that is still in training."""

import torch
import torch.nn.functional as F
from torch import nn

from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.evaluation.pictures import grid, png
from steps.inputs.context import StageContext
from steps.inputs.loaded import StageInputs
from steps.training.randomness import keyed_normal
from steps.training.selection import spread

_CAPTIONS = 4
_SEED = 0
_STEPS = 8
_GUIDANCE = 3.0
_SHOWN_PIXELS = 192  # a card is one file


class ValidationPictures:
    """Draws the same captions from the same noise every time; changes neither the model nor any random state."""

    def __init__(self, inputs: StageInputs, context: StageContext) -> None:
        self._inputs, self._context = inputs, context

    @torch.no_grad()
    def draw(self, unet: nn.Module) -> bytes:
        """PNG of one row of pictures, in the order of `captions`; the UNet predicts v."""
        base, data = self._inputs.base, self._inputs.data
        rows = spread(len(data.captions("validation")), _CAPTIONS)
        latents = sample_latents(
            unet,
            NoiseSchedule.from_config(base.scheduler_config),
            noise=keyed_normal(
                base.latent_shape, seed=_SEED, name="live", iteration=0, indices=torch.arange(_CAPTIONS)
            ),
            embeddings=data.embeddings("validation", rows),
            empty_embedding=data.empty_embedding,
            steps=_STEPS,
            guidance_scale=_GUIDANCE,
            prediction_type="v_prediction",
        )
        vae = base.vae.to(self._context.device)
        pictures = decode_latents(vae, latents, scaling_factor=base.scaling_factor, batch_size=1)
        if pictures.shape[-1] > _SHOWN_PIXELS:
            small = F.interpolate(pictures.float(), size=(_SHOWN_PIXELS, _SHOWN_PIXELS), mode="area")
            pictures = small.round().to(torch.uint8)
        return png(grid(pictures, columns=_CAPTIONS))

    def captions(self) -> list[str]:
        """What the pictures are drawn for."""
        found = self._inputs.data.captions("validation")
        return [found[i] for i in spread(len(found), _CAPTIONS).tolist()]
