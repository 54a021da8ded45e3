"""What float16 alone costs a torch model, without any conversion: the measure for what conversion adds.

Weights are rounded, and every result of every torch operation; sums inside an operation are not, as in float16 kernels
that accumulate in float32. What the exported program keeps in float32 is not rounded either: the sinusoidal features
of the timestep, and whatever lies outside of the network itself.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle


def with_rounded_weights(module: nn.Module, *, in_place: bool = False) -> nn.Module:
    """A copy of `module` with parameters rounded to float16 and kept as float32; tables (buffers) stay as they are.

    `in_place` rounds `module` itself, which spares the memory of a copy.
    """
    rounded = module if in_place else copy.deepcopy(module)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded


@contextmanager
def rounded_results(network: nn.Module) -> Iterator[None]:
    """Within, every float32 result inside of `network` is rounded to float16, but for its timestep features."""
    mode = _RoundedResults()
    hooks = [*_switched(network, mode, inside=True)]
    for module in network.modules():
        if isinstance(module, Timesteps):
            hooks += _switched(module, mode, inside=False)
    try:
        with mode:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _switched(module: nn.Module, mode: "_RoundedResults", *, inside: bool) -> list[RemovableHandle]:
    """Switch rounding to `inside` while `module` runs, and back after it."""

    def before(*_: object) -> None:
        mode.active = inside

    def after(*_: object) -> None:
        mode.active = not inside

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


class _RoundedResults(TorchDispatchMode):
    """Sees every operation below autograd; `active` switches it."""

    def __init__(self) -> None:
        super().__init__()
        self.active = False

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        # A view shows numbers that were rounded when they were made.
        if not self.active or func.is_view:
            return result
        if func._schema.is_mutable:
            return tree_map(_round_in_place, result)
        return tree_map(_rounded, result)


def _rounded(value: object) -> object:
    return value.half().float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _round_in_place(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.copy_(value.half().float())
    return value
