"""Evaluating a UNet: several batches in one call, and guidance in one call of twice the batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steps.diffusion.parameterization import guided


@dataclass(frozen=True)
class UNetInput:
    """Noisy latents z (n, c, h, w), timesteps t (n,) and text embeddings (n, tokens, width)."""

    z: Tensor
    t: Tensor
    embeddings: Tensor

    def at(self, rows: Tensor) -> "UNetInput":
        """Some of the samples, `rows` (m,)."""
        return UNetInput(self.z[rows], self.t[rows], self.embeddings[rows])

    def with_embeddings(self, embeddings: Tensor) -> "UNetInput":
        """The same latents and timesteps under other captions; (1, tokens, width) goes to all samples."""
        return UNetInput(self.z, self.t, embeddings.expand(len(self.z), -1, -1))


def predict_together(unet: nn.Module, inputs: Sequence[UNetInput]) -> list[Tensor]:
    """The network's float32 output for each input, from one call on all of them."""
    output = unet(
        torch.cat([item.z for item in inputs]),
        torch.cat([item.t for item in inputs]),
        encoder_hidden_states=torch.cat([item.embeddings for item in inputs]),
        return_dict=False,
    )[0]
    return list(output.float().split([len(item.z) for item in inputs]))


def predict(unet: nn.Module, item: UNetInput) -> Tensor:
    """The network's float32 output (n, c, h, w) without guidance."""
    return predict_together(unet, [item])[0]


def predict_guided(unet: nn.Module, item: UNetInput, *, empty_embedding: Tensor, w: Tensor | float) -> Tensor:
    """The guided output (n, c, h, w): both halves see the same z and t in one call, the unconditional half
    first.
    """
    unconditional, conditional = predict_together(unet, [item.with_embeddings(empty_embedding), item])
    return guided(conditional=conditional, unconditional=unconditional, w=w)
