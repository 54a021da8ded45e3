"""Multiply-accumulates of convolutions, linear layers and attention products: a latency model without any
machine.

Counted from shapes on the meta device, so that even Stable Diffusion takes seconds and no memory.
Normalisations, activations and additions are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers.models.clip.modeling_clip import CLIPAttention

from steps.latency.parts import Part


class MacCounter:
    """Counts while its hooks are in place; `total` is everything, `by_part` what ran inside a part."""

    def __init__(self, model: nn.Module, parts: Sequence[Part] = ()) -> None:
        self.total = 0
        self.by_part: dict[str, int] = {part.id: 0 for part in parts}
        self._current: str | None = None
        self._handles = []
        for part in parts:
            for module in part.modules:
                self._handles.append(module.register_forward_pre_hook(self._entering(part.id)))
                self._handles.append(module.register_forward_hook(self._leaving))
        for module in model.modules():
            count = _counter_of(module)
            if count is not None:
                # Before the hook of the part, which may be this very module.
                self._handles.append(
                    module.register_forward_hook(self._counting(count), with_kwargs=True, prepend=True)
                )

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._current = name

        return enter

    def _leaving(self, *_: Any) -> None:
        self._current = None

    def _counting(self, count: "_Count") -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            macs = count(module, inputs, kwargs, output)
            self.total += macs
            if self._current is not None:
                self.by_part[self._current] += macs

        return add


_Count = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Any], int]


def count_macs(
    model: nn.Module, call: Callable[[], Any], parts: Sequence[Part] = ()
) -> tuple[int, dict[str, int]]:
    """MACs of one call in all and by part. The model and its inputs may lie on the meta device."""
    counter = MacCounter(model, parts)
    try:
        with torch.no_grad():
            call()
    finally:
        counter.remove()
    return counter.total, counter.by_part


def _counter_of(module: nn.Module) -> _Count | None:
    if isinstance(module, nn.Conv2d):
        return _convolution
    if isinstance(module, nn.Linear):
        return _linear
    if isinstance(module, Attention):
        return _diffusers_attention
    if isinstance(module, CLIPAttention):
        return _clip_attention
    return None


def _convolution(module: nn.Conv2d, _: Any, __: Any, output: Any) -> int:
    """Every output value takes one product per weight of its filter."""
    return int(output.numel()) * (module.in_channels // module.groups) * prod(module.kernel_size)


def _linear(module: nn.Linear, _: Any, __: Any, output: Any) -> int:
    return int(output.numel()) * module.in_features


def _diffusers_attention(module: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> int:
    """Queries times keys and weights times values; the projections are linear layers of their own."""
    hidden = inputs[0] if inputs else kwargs["hidden_states"]
    context = kwargs.get("encoder_hidden_states")
    if context is None and len(inputs) > 1:
        context = inputs[1]
    queries = _length(hidden)
    keys = queries if context is None else _length(context)
    return 2 * int(hidden.shape[0]) * queries * keys * int(module.inner_dim)


def _clip_attention(module: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> int:
    hidden = inputs[0] if inputs else kwargs["hidden_states"]
    length = _length(hidden)
    return 2 * int(hidden.shape[0]) * length * length * int(module.embed_dim)


def _length(hidden: Any) -> int:
    """Number of positions of (B, L, C) or (B, C, H, W)."""
    return int(hidden.shape[1]) if hidden.ndim == 3 else int(hidden.shape[2] * hidden.shape[3])
