"""What is noticed while a program runs twice, exactly and rounded: overflow, large results, jumps of the error."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from artifacts_schema.bundle import Component
from steps.export.interpreter import Executed
from steps.files.errors import ExportError

_FLOAT16_OVERFLOW = 65520.0  # the smallest number that rounds to infinity
_JUMP = 10.0  # times the largest error among an operation's inputs
_VISIBLE = 0.01  # relative errors below are no jump, whatever they started from
_PIECE = 1 << 24  # numbers; the difference of two large results is taken in pieces of this size


@dataclass
class Watch:
    """What is noticed while a program runs twice, exactly and rounded, side by side."""

    component: Component
    largest: float = 0.0
    largest_operation: str = ""
    jump: str | None = None
    place: str = ""
    errors: dict[str, float] = field(default_factory=dict)

    def start(self, place: str) -> None:
        """A new sample begins."""
        self.place = place
        self.errors.clear()

    def see(self, exact: Executed, rounded: Executed) -> None:
        """Raises ExportError at the first result that is not finite."""
        if not exact.value.is_floating_point() or not exact.value.numel():
            return
        sizes = _largest(exact.value), _largest(rounded.value)
        self._check_finite(exact, *sizes)
        if exact.half and sizes[0] > self.largest:
            self.largest, self.largest_operation = sizes[0], f"{exact.operation} {exact.name}"
        error = _relative_error(exact.value, rounded.value)
        before = max((self.errors.get(name, 0.0) for name in exact.sources), default=0.0)
        self.errors[exact.name] = error
        if self.jump is None and error > max(_VISIBLE, _JUMP * before):
            self.jump = (
                f"{exact.operation} {exact.name} ({self.place}): relative error {before:.2g} to {error:.2g}"
            )

    def _check_finite(self, exact: Executed, size: float, rounded_size: float) -> None:
        overflows = exact.half and not rounded_size < _FLOAT16_OVERFLOW
        if overflows or not math.isfinite(size) or not math.isfinite(rounded_size):
            kind = "float32" if not math.isfinite(size) else "float16"
            raise ExportError(
                f"{self.component}: {exact.operation} {exact.name} is the first operation that is not finite in "
                f"{kind} ({self.place}); it reaches {max(size, rounded_size):.3g}, float16 ends at 65504. Train with "
                "more weight decay, or keep this operation in float32 (steps/export/precision.py)"
            )


def _largest(value: Tensor) -> float:
    """Of the absolute values, without a copy of them; NaN when there is one."""
    low, high = torch.aminmax(value)
    return max(-float(low), float(high))


def _relative_error(exact: Tensor, rounded: Tensor) -> float:
    size = float(torch.linalg.vector_norm(exact))
    pieces = zip(exact.reshape(-1).split(_PIECE), rounded.reshape(-1).split(_PIECE), strict=True)
    return math.hypot(*(float(torch.linalg.vector_norm(a - b)) for a, b in pieces)) / size if size else 0.0
