"""The machines that a plan can be made for: their memory, and how fast they compute. Imports no torch.

Peak numbers are the makers' for dense matrices. How much of it a training uses is `share`: measured where `measured` says on
what, else stated. The stated ones lie between what is published of this kind of model on an A100: BK-SDM's training (its model
card: 12.8 million pictures in 300 hours) uses 0.13 of bf16's peak, the paper's TensorRT UNet (51.2 ms for two latents) 0.20 of
TF32's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from steps.files.errors import ConfigError

_STATED = {"bf16": 0.15, "fp32": 0.5}
_GIB = 1 << 30
HERE = "here"
"""Not of the table: the machine that the plan is made on."""


@dataclass(frozen=True)
class Hardware:
    """One accelerator: bytes of memory, and FLOP/s that are reached, by precision (peak times share)."""

    name: str
    memory_bytes: float
    bf16: float
    fp32: float
    origin: str


def _stated(name: str, memory_gib: float, bf16_tflops: float, fp32_tflops: float) -> Hardware:
    share = ", ".join(f"{value:.2f} of {kind}'s peak" for kind, value in _STATED.items())
    return Hardware(
        name,
        memory_gib * _GIB,
        bf16_tflops * 1e12 * _STATED["bf16"],
        fp32_tflops * 1e12 * _STATED["fp32"],
        f"stated, not measured: {bf16_tflops:g} TFLOP/s in bf16, {fp32_tflops:g} in fp32; {share}",
    )


# Memory is what torch finds, some of what is printed on the box is taken.
TABLE: Mapping[str, Hardware] = {
    item.name: item
    for item in (
        _stated("a100-40gb", 39.4, 312, 19.5),
        _stated("a100-80gb", 79.1, 312, 19.5),
        _stated("h100-80gb", 79.1, 989, 66.9),
        _stated("h200-141gb", 139.8, 989, 66.9),
        _stated("l4-24gb", 22.0, 121, 30.3),
        _stated("l40s-48gb", 44.4, 362, 91.6),
        _stated("rtx-3090-24gb", 23.6, 71, 35.6),
        _stated("rtx-4090-24gb", 23.6, 165, 82.6),
    )
}


def hardware_named(
    name: str, *, tflops: float | None = None, share: float = 1.0, memory_gib: float | None = None
) -> Hardware:
    """A line of the table; or one of a user's own, `tflops` in any precision of which `share` is used, and its memory.

    Raises ConfigError for an unknown name, with the nearest, and for one of a user's own that lacks a number.
    """
    if name in TABLE:
        found = TABLE[name]
        if memory_gib is not None:
            found = replace(found, memory_bytes=memory_gib * _GIB)
        if tflops is None:
            return found
        rate = tflops * 1e12 * share
        return replace(
            found, bf16=rate, fp32=rate, origin=f"stated: {tflops:g} TFLOP/s, of which {share:g} are used"
        )
    if tflops is None or memory_gib is None:
        near = get_close_matches(name.lower(), TABLE, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(TABLE)} and '{HERE}'"
        raise ConfigError(
            f"there is no hardware '{name}'; {hint}. For another, state --tflops, --share and --memory-gib"
        )
    rate = tflops * 1e12 * share
    return Hardware(
        name, memory_gib * _GIB, rate, rate, f"stated: {tflops:g} TFLOP/s, of which {share:g} are used"
    )
