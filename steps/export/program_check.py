"""Whether a saved program computes what the torch model does: the numbers that `ComponentReport.parity` holds.

Passing is necessary, not sufficient: the program runs in torch here (`interpreter`), not on Apple's hardware.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from artifacts_schema.bundle import Component, Parity, ParityPoint
from artifacts_schema.config import ProgramCheckConfig
from steps.errors import ExportError
from steps.export.contract import Contract
from steps.export.interpreter import Executed, Program
from steps.export.rounding import rounded_results, with_rounded_weights

logger = logging.getLogger(__name__)

_FLOAT16_OVERFLOW = 65520.0  # the smallest number that rounds to infinity
_JUMP = 10.0  # times the largest error among an operation's inputs
_VISIBLE = 0.01  # relative errors below are no jump, whatever they started from
_EXPLAINED_DB = 1.0  # so close is the exact run to torch with rounded weights where these explain it


@dataclass(frozen=True)
class Sample:
    """One input of a component, where it is from, and how to turn outputs into the quantity that is compared."""

    place: str
    inputs: Mapping[str, Tensor]
    scale: Tensor | float = 1.0
    shift: Tensor | float = 0.0

    def quantity(self, output: Tensor) -> Tensor:
        """output * scale + shift."""
        return output * self.scale + self.shift


def check_program(  # noqa: PLR0913 - what is compared, on what, against which gates
    component: Component,
    package: Path,
    module: nn.Module,
    contract: Contract,
    samples: Iterable[Sample],
    *,
    quantity: str,
    gates: ProgramCheckConfig,
) -> Parity:
    """Compare the saved `package` with `module`, which it was converted from, on the contract's first output.

    `quantity` names what `Sample.quantity` makes of that output. Raises ExportError for a program that cannot be
    run, a result that is not finite, or a ratio below its gate.
    """
    comparison = _Comparison(component, Program.load(component, package), module, contract)
    found: dict[str, list[ParityPoint]] = {}
    for sample in samples:
        found.setdefault(sample.place, []).append(comparison.of(sample))
    watch = comparison.watch
    parity = Parity(
        quantity=quantity,
        points=tuple(_worst(points) for points in found.values()),
        largest_activation=watch.largest,
        largest_operation=watch.largest_operation,
        error_jump=watch.jump,
    )
    for point in parity.points:
        logger.info(
            "component=%s %s exact=%.1fdB rounded=%.1fdB torch_rounded=%.1fdB",
            component,
            point.place.replace(" ", ""),
            point.exact_db,
            point.rounded_db,
            point.torch_rounded_db,
        )
    return check_gates(component, parity, gates)


def check_gates(component: Component, parity: Parity, gates: ProgramCheckConfig) -> Parity:
    """`parity` with the reason for a low exact ratio added. Raises ExportError naming the first gate it misses.

    The exact run shows the conversion, and the rounding of the weights, which is not the conversion's fault: where
    torch on rounded weights does no better, the ratio is accepted and the reason noted.
    """
    note = None
    for point in parity.points:
        if not point.exact_db >= gates.min_exact_db:
            if not point.exact_db >= point.weights_db - _EXPLAINED_DB:
                _refuse(component, parity, point, "without rounding", gates.min_exact_db, point.exact_db)
            note = (
                f"{point.place}: {point.exact_db:.1f} dB because of the weights' float16 alone: torch with such "
                f"weights reaches {point.weights_db:.1f} dB"
            )
        if not point.rounded_db >= gates.min_rounded_db:
            _refuse(component, parity, point, "with float16 results", gates.min_rounded_db, point.rounded_db)
        if not point.loss_db <= gates.max_loss_db:
            _refuse(
                component,
                parity,
                point,
                "with float16 results (as torch has them, less coreml_export.program_check.max_loss_db)",
                point.rounded_db + point.loss_db - gates.max_loss_db,
                point.rounded_db,
            )
    return parity.model_copy(update={"exact_note": note})


def psnr(expected: Tensor, found: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, as Apple's converter computes it (its small constants included)."""
    root_mean_square = float((expected.double() - found.double()).square().mean().sqrt())
    return 20.0 * math.log10((float(expected.abs().max()) + 1e-5) / (root_mean_square + 1e-10))


def describe(parity: Parity) -> str:
    """One line for reports and manifest."""
    note = f" ({parity.exact_note})" if parity.exact_note else ""
    return (
        f"program check on the {parity.quantity}: {parity.rounded_db:.1f} dB with float16 results, "
        f"{parity.exact_db:.1f} dB without{note}; not run on Apple hardware"
    )


class _Comparison:
    """A program beside its torch model; `watch` keeps what was noticed over all samples."""

    def __init__(self, component: Component, program: Program, module: nn.Module, contract: Contract) -> None:
        self.program, self.module = program, module
        self.inputs = [tensor.name for tensor in contract[0]]
        self.output = contract[1][0].name
        self.rounded_module = with_rounded_weights(module)
        self.watch = _Watch(component)

    def of(self, sample: Sample) -> ParityPoint:
        """One sample's ratios. Raises ExportError as `check_program` does."""
        expected = self._torch(self.module, sample)
        weights = self._torch(self.rounded_module, sample)
        # A UNet's wrapper adds the conversion to noise, which is in float32, to the network.
        with rounded_results(getattr(self.rounded_module, "unet", self.rounded_module)):
            torch_rounded = self._torch(self.rounded_module, sample)
        exact, rounded = self._program(sample)

        def ratio(found: Tensor) -> float:
            return psnr(sample.quantity(expected), sample.quantity(found))

        return ParityPoint(
            place=sample.place,
            inputs=1,
            exact_db=ratio(exact),
            weights_db=ratio(weights),
            rounded_db=ratio(rounded),
            torch_rounded_db=ratio(torch_rounded),
            loss_db=ratio(torch_rounded) - ratio(rounded),
            output_exact_db=psnr(expected, exact),
            output_rounded_db=psnr(expected, rounded),
        )

    @torch.no_grad()
    def _torch(self, module: nn.Module, sample: Sample) -> Tensor:
        result = module(*(sample.inputs[name] for name in self.inputs))
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output

    def _program(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The output of the exact and of the rounded run, every result of both seen by `watch`."""
        self.watch.start(sample.place)
        found: tuple[Tensor, Tensor] | None = None
        both = zip(
            self.program.execute(sample.inputs, rounded=False),
            self.program.execute(sample.inputs, rounded=True),
            strict=True,
        )
        for exact, rounded in both:
            self.watch.see(exact, rounded)
            if exact.name == self.output:
                found = (exact.value, rounded.value)
        if found is None:
            raise ExportError(f"{self.watch.component}: no operation of the program gives {self.output}")
        return found


@dataclass
class _Watch:
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
        sizes = float(exact.value.abs().amax()), float(rounded.value.abs().amax())  # NaN stays NaN
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


def _worst(points: list[ParityPoint]) -> ParityPoint:
    """Of several samples at one place: the lowest of each ratio, and the mean loss, which one sample decides by chance."""
    lowest = {
        name: min(getattr(point, name) for point in points)
        for name in ParityPoint.model_fields
        if name.endswith("_db")
    }
    lowest["loss_db"] = fmean(point.loss_db for point in points)
    return ParityPoint(place=points[0].place, inputs=len(points), **lowest)


def _relative_error(exact: Tensor, rounded: Tensor) -> float:
    size = float(torch.linalg.vector_norm(exact))
    return float(torch.linalg.vector_norm(exact - rounded)) / size if size else 0.0


def _refuse(
    component: Component, parity: Parity, point: ParityPoint, how: str, expected: float, found: float
) -> None:
    raise ExportError(
        f"{component}: expected at least {expected:.1f} dB {how} on the {parity.quantity} ({point.place}), "
        f"found {found:.1f}; torch with float16 weights {point.weights_db:.1f}, with float16 results "
        f"{point.torch_rounded_db:.1f}; first jump of the error: {parity.error_jump or 'none'}; largest result "
        f"{parity.largest_activation:.3g} in {parity.largest_operation}. Correct the conversion, or set another gate "
        "under coreml_export.program_check"
    )
