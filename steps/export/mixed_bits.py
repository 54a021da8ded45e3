"""Bits weight by weight: more where the component's result suffers, fewer where it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from steps.export.compression import BITS
from steps.export.interpreter import Program
from steps.export.palette import Weight, palettized
from steps.export.program_check import Sample

MEASURED_AT = 4  # bits at which the interpreter is asked; the other errors follow from the weight's own
_TRIES = 6
_STEP = 1.6  # of the error allowed, between two tries


@dataclass(frozen=True)
class Sensitivity:
    """Of one weight: how many numbers, and the mean square error it alone causes in the result, by bits."""

    numbers: int
    error: Mapping[int, float]

    def bytes(self, bits: int) -> int:
        """Indices and table of float16."""
        return self.numbers * bits // 8 + 2 * (1 << bits)


def sensitivities(
    program: Program, weights: Mapping[str, Weight], samples: Sequence[Sample]
) -> dict[str, Sensitivity]:
    """Run `program` once a weight and sample, with that weight alone in a palette of `MEASURED_AT` bits.

    Small errors of a weight act linearly, so that the square error at other bits is taken to go with the weight's own
    square error.
    """
    expected = [_first(program, sample) for sample in samples]
    found = {}
    for name, weight in weights.items():
        own = {bits: _square_error(weight, bits) for bits in BITS}
        changed = program.with_constants({name: _tensor(weight, MEASURED_AT)})
        errors = [
            float(((_first(changed, sample) - right) * sample.scale).square().mean())
            for sample, right in zip(samples, expected, strict=True)
        ]
        measured = float(np.mean(errors)) / max(own[MEASURED_AT], 1e-30)
        found[name] = Sensitivity(weight.size, {bits: measured * own[bits] for bits in BITS})
    return found


def allot(sensitivity: Mapping[str, Sensitivity], allowed: float) -> dict[str, int]:
    """Bits by weight, with few bytes, whose errors add up to `allowed` at most (or the most bits there are).

    From the most bits downward, always where a byte saved costs the least error.
    """
    bits = dict.fromkeys(sensitivity, BITS[-1])
    total = sum(item.error[BITS[-1]] for item in sensitivity.values())
    steps = []
    for name, item in sensitivity.items():
        # A weight's errors fall with every bit, and each next bit saves less: the order of steps is kept by sorting.
        for high, low in zip(BITS[:0:-1], BITS[-2::-1], strict=True):
            saved = item.bytes(high) - item.bytes(low)
            if saved > 0:
                steps.append(((item.error[low] - item.error[high]) / saved, -high, name, low))
    for _, negative_high, name, low in sorted(steps):
        item = sensitivity[name]
        more = item.error[low] - item.error[-negative_high]
        if bits[name] == -negative_high and total + more <= allowed:
            bits[name] = low
            total += more
    return bits


def search(
    sensitivity: Mapping[str, Sensitivity],
    uniform_bits: int,
    good_enough: Callable[[Mapping[str, int]], bool],
) -> dict[str, int] | None:
    """The smallest allotment that is `good_enough`, among a few that allow more and less error than `uniform_bits`.

    None where none of them is.
    """
    allowed = sum(item.error[uniform_bits] for item in sensitivity.values())
    best: dict[str, int] | None = None
    for _ in range(_TRIES):
        bits = allot(sensitivity, allowed)
        if good_enough(bits):
            if best is not None and size(sensitivity, bits) >= size(sensitivity, best):
                break
            best = bits
            allowed *= _STEP
        elif best is not None:
            break
        else:
            allowed /= _STEP
    return best


def size(sensitivity: Mapping[str, Sensitivity], bits: Mapping[str, int]) -> int:
    """Bytes of the weights under an allotment."""
    return sum(item.bytes(bits[name]) for name, item in sensitivity.items())


def with_bits(program: Program, weights: Mapping[str, Weight], bits: Mapping[str, int]) -> Program:
    """The program with weights as the palettes of `bits` have them."""
    return program.with_constants({name: _tensor(weights[name], count) for name, count in bits.items()})


def _tensor(weight: Weight, bits: int) -> torch.Tensor:
    return torch.from_numpy(palettized(weight, bits).astype(np.float32))


def _square_error(weight: Weight, bits: int) -> float:
    difference = palettized(weight, bits).astype(np.float64) - weight.astype(np.float64)
    return float(np.square(difference).mean())


def _first(program: Program, sample: Sample) -> torch.Tensor:
    """The output that is compared, in float32 arithmetic."""
    return program.run(sample.inputs, rounded=False)[next(iter(program.outputs))]
