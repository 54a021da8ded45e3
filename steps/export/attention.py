"""Attention one head at a time, in the layout that Apple's Neural Engine prefers.

The same result as scaled-dot-product attention; (batch, channels, 1, positions) instead of (batch, positions,
channels), after Apple's "Deploying Transformers on the Apple Neural Engine" (2022).
"""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from steps.files.errors import ExportError


class SplitEinsumProcessor:
    """A diffusers attention processor. Scales queries first: unscaled, products could overflow float16."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend. hidden_states: (B, S, C); encoder_hidden_states: (B, T, D) or None for self-attention.

        Returns (B, S, C). Raises ExportError for a mask, which the exported models do not have.
        """
        if attention_mask is not None:
            raise ExportError("attention = 'split_einsum' has no attention mask; export with 'original'")
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = (attn.to_q(hidden_states) * attn.scale).transpose(1, 2).unsqueeze(2)  # (B, C, 1, S)
        key = attn.to_k(source).unsqueeze(2)  # (B, T, 1, C)
        value = attn.to_v(source).transpose(1, 2).unsqueeze(2)  # (B, C, 1, T)
        width = query.shape[1] // attn.heads
        heads = zip(
            query.split(width, dim=1), key.split(width, dim=3), value.split(width, dim=1), strict=True
        )
        attended = torch.cat([_one_head(*head) for head in heads], dim=1).squeeze(2).transpose(1, 2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended)) / attn.rescale_output_factor
        return projected


def _one_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (B, c, 1, S), key (B, T, 1, c), value (B, c, 1, T) to (B, c, 1, S)."""
    weights = torch.einsum("bchq,bkhc->bkhq", query, key).softmax(dim=1)
    attended: Tensor = torch.einsum("bkhq,bchk->bchq", weights, value)
    return attended
