"""Multiply-accumulates of convolutions, linear layers and attention products: a latency model without any machine.

torch counts them from shapes, so that on the meta device even Stable Diffusion takes seconds and no memory.
Normalisations, activations and additions are not counted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch.utils.flop_counter import FlopCounterMode

from steps.latency.parts import Part

_FLOPS = 2  # of a multiply-accumulate


def count_macs(call: Callable[[], object], parts: Sequence[Part] = ()) -> tuple[int, dict[str, int]]:
    """MACs of one call in all and by part. Models and inputs may lie on the meta device."""
    counter = FlopCounterMode(display=False)
    flops = {part.id: 0 for part in parts}

    def begin(name: str) -> None:
        flops[name] -= counter.get_total_flops()

    def end(name: str) -> None:
        flops[name] += counter.get_total_flops()

    with ExitStack() as hooks, torch.no_grad(), counter:
        for part in parts:
            for module in part.modules:
                before = module.register_forward_pre_hook(lambda *_, name=part.id: begin(name))
                after = module.register_forward_hook(lambda *_, name=part.id: end(name))
                for handle in (before, after):
                    hooks.callback(handle.remove)
        call()
    by_part = {name: count // _FLOPS for name, count in flops.items()}
    return counter.get_total_flops() // _FLOPS, by_part
