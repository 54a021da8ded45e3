"""Memory of a training step, told from shapes alone: what is alive at its peak.

A model of fake tensors (`torch._subclasses.FakeTensorMode`: shapes, no numbers) runs forward and backward; every storage
that is made is counted from its birth to its death. So recomputation (`gradient_checkpointing`), bfloat16 copies of
weights and everything that is kept for the backward pass are in the number, at once as large as they are and not
estimated. What the allocator wastes and what GPU libraries keep for themselves is not: see `steps.latency.fit`.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from artifacts_schema.base import canonical_json, json_object
from steps.training.recomputation import set_recomputation
from steps.unet.small_decoder import SmallDecoder, small_widths

Precision = Literal["fp32", "bf16"]


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is entered: `now` alive, `peak` at most."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # What the model holds already is none of what is made.
        tensors = (*known.parameters(), *known.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in tree_leaves(made):
            if isinstance(item, Tensor):
                self._note(item.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._known:
            return
        self._known.add(place)
        size = storage.nbytes()
        weakref.finalize(storage, self._forget, place, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def step_bytes(
    model: nn.Module, forward: Callable[[], Tensor], *, precision: Precision = "fp32", recompute: bool = False
) -> int:
    """Bytes that one forward and backward pass needs at its peak besides the weights; the gradients are among them.

    `forward` calls `model`; the loss is a mean square. Numbers are not needed: the tensors may be fake.
    """
    set_recomputation(model.train().requires_grad_(True), recompute)
    counter = LiveBytes(model)
    try:
        with counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = forward().float().square().mean()
            loss.backward()
            del loss
    finally:
        model.zero_grad(set_to_none=True)
        set_recomputation(model, False)
    return counter.peak


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step besides the weights, as a line over the samples in it; and how many parameters are trained."""

    parameters: int
    fixed: float
    per_sample: float

    def of(self, samples: int) -> float:
        """Bytes at the peak of a step of so many samples."""
        return self.fixed + samples * self.per_sample


def unet_step(config: dict[str, Any], *, tokens: int, precision: Precision, recompute: bool) -> StepMemory:
    """The step of a UNet2DConditionModel with this `config`."""
    return _unet_step(canonical_json(config), tokens, precision, recompute)


def decoder_step(
    config: dict[str, Any], *, latent: int, width_fraction: float, precision: Precision, recompute: bool
) -> StepMemory:
    """The step of the small decoder of an AutoencoderKL with this `config`, on latents with sides of `latent`."""
    return _decoder_step(canonical_json(config), latent, width_fraction, precision, recompute)


@cache  # seconds each
def _unet_step(config: str, tokens: int, precision: Precision, recompute: bool) -> StepMemory:
    values = json_object(config)
    side, width = int(values["sample_size"]), int(values["cross_attention_dim"])
    with FakeTensorMode():
        unet = UNet2DConditionModel.from_config(values)

        def forward(count: int) -> Tensor:
            z, text = (
                torch.empty(count, unet.config.in_channels, side, side),
                torch.empty(count, tokens, width),
            )
            sample: Tensor = unet(z, torch.empty(count), text, return_dict=False)[0]
            return sample

        return _line(unet, forward, precision, recompute)


@cache
def _decoder_step(
    config: str, latent: int, width_fraction: float, precision: Precision, recompute: bool
) -> StepMemory:
    with FakeTensorMode():
        vae = AutoencoderKL.from_config(json_object(config))
        small = small_decoder_like(vae, width_fraction)
        channels = int(vae.config.latent_channels)
        return _line(
            small, lambda count: small(torch.empty(count, channels, latent, latent)), precision, recompute
        )


def small_decoder_like(vae: AutoencoderKL, width_fraction: float) -> SmallDecoder:
    """A small decoder of this shape, its weights not cut from anything."""
    widths, groups = small_widths(
        vae.config.block_out_channels, width_fraction, norm_num_groups=vae.config.norm_num_groups
    )
    settings = {key: vae.config[key] for key in SmallDecoder.SHARED}
    small: SmallDecoder = SmallDecoder(**settings, block_out_channels=widths, norm_num_groups=groups)
    return small


def _line(
    model: nn.Module, forward: Callable[[int], Tensor], precision: Precision, recompute: bool
) -> StepMemory:
    """Through the steps of two and of six samples."""
    two, six = (
        step_bytes(model, partial(forward, count), precision=precision, recompute=recompute)
        for count in (2, 6)
    )
    slope = (six - two) / 4
    return StepMemory(sum(p.numel() for p in model.parameters()), two - 2 * slope, slope)
