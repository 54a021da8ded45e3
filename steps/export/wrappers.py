"""The models as the runtime calls them: its tensor layouts, its noise prediction, its latent scaling."""

import copy

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import ExportError
from steps.unet.small_decoder import SmallDecoder

RUNTIME_SCALING_FACTOR = 0.18215
"""Apple's Swift decoder divides latents by this number, whatever the model."""

_FLOAT16_INTEGERS = 2048  # float16 counts exactly up to here


class TextEncoderForExport(nn.Module):
    """CLIP text encoder with token ids as floats, as the runtime feeds them."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(1, tokens) float32 ids to hidden states (1, tokens, D) and the pooled state (1, D)."""
        output = self.text_encoder(input_ids.long(), return_dict=False)
        return output[0], output[1]


class UNetForExport(nn.Module):
    """A UNet that takes the text as (B, D, 1, tokens) and always returns noise.

    With a `schedule` the UNet inside predicts the velocity v, and eps = alpha_t v + sigma_t z follows
    (Salimans & Ho, arXiv 2202.00512, appendix D), alpha_t and sigma_t being rows of tables. Raises
    ExportError when float16 cannot hold the schedule's timesteps.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule | None) -> None:
        super().__init__()
        self.unet = unet
        self.velocity = schedule is not None
        if schedule is None:
            return
        if schedule.train_timesteps > _FLOAT16_INTEGERS:
            raise ExportError(
                f"unet: expected at most {_FLOAT16_INTEGERS} training timesteps, which float16 counts, "
                f"found {schedule.train_timesteps}; train with fewer"
            )
        steps = torch.arange(schedule.train_timesteps)
        self.register_buffer("alphas", schedule.alpha(steps).flatten())
        self.register_buffer("sigmas", schedule.sigma(steps).flatten())

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """sample (B, C, H, W), timestep (B,), encoder_hidden_states (B, D, 1, tokens); noise (B, C, H, W)."""
        text = encoder_hidden_states.squeeze(2).transpose(1, 2)
        output: Tensor = self.unet(sample, timestep, text, return_dict=False)[0]
        if not self.velocity:
            return output
        index = timestep.long()
        alpha = self.get_buffer("alphas")[index].reshape(-1, 1, 1, 1)
        sigma = self.get_buffer("sigmas")[index].reshape(-1, 1, 1, 1)
        return sigma * sample + alpha * output


class DecoderForExport(nn.Module):
    """Decoder of an AutoencoderKL or a SmallDecoder (copied), for latents divided by RUNTIME_SCALING_FACTOR.

    The difference to the model's own `scaling_factor` goes into the weights of the first convolution: that is
    exact but for the rounding of the weights, and costs nothing at run time.
    """

    def __init__(self, vae: AutoencoderKL | SmallDecoder, scaling_factor: float) -> None:
        super().__init__()
        if not scaling_factor > 0:
            raise ExportError(f"vae_decoder: scaling_factor must be positive, found {scaling_factor}")
        self.factor = RUNTIME_SCALING_FACTOR / scaling_factor
        self.decoder = copy.deepcopy(vae.decoder)
        self.post_quant_conv = copy.deepcopy(vae.post_quant_conv)
        if self.factor != 1.0:
            first = self.decoder.conv_in if self.post_quant_conv is None else self.post_quant_conv
            with torch.no_grad():
                first.weight.mul_(self.factor)

    def forward(self, z: Tensor) -> Tensor:
        """(1, C, h, w) latents to a picture (1, 3, H, W) in about [-1, 1]."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        image: Tensor = self.decoder(z)
        return image
