"""Whether a saved program computes what the torch model does: the numbers that `ComponentReport.parity` holds.

Passing is necessary, not sufficient: the program runs in torch here (`interpreter`), not on Apple's hardware.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from artifacts_schema.bundle import Component, Parity, ParityPoint
from artifacts_schema.result_configs import ProgramCheckConfig
from steps.export.contract import Contract
from steps.export.interpreter import ChunkedProgram, Program, load_packages
from steps.export.rounding import rounded_results, with_rounded_weights
from steps.export.watch import Watch
from steps.files.errors import ExportError

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class TorchResult:
    """A sample, and the outputs of the torch model: float32, float16 weights, float16 weights and results."""

    sample: Sample
    exact: Tensor
    weights: Tensor
    rounded: Tensor


def check_program(  # noqa: PLR0913 - what is compared, on what, against which gates
    component: Component,
    package: Path | Sequence[Path],
    module: nn.Module,
    contract: Contract,
    samples: Iterable[Sample],
    *,
    quantity: str,
    gates: ProgramCheckConfig,
) -> Parity:
    """Compare a saved `package` (or its chunks, in order) with `module`, which it was converted from.

    What is compared is the contract's first output, or what `Sample.quantity` makes of it, named `quantity`. Raises
    ExportError for a program that cannot be run, a result that is not finite, or a ratio below its gate.
    """
    expected = torch_results(module, contract, samples)
    return compare(component, package, contract, expected, quantity=quantity, gates=gates)


def torch_results(
    module: nn.Module, contract: Contract, samples: Iterable[Sample], *, in_place: bool = False
) -> list[TorchResult]:
    """What torch makes of every sample: in float32, with float16 weights, and with float16 results.

    `in_place` leaves `module` with rounded weights, instead of holding a second copy of them.
    """
    names = [tensor.name for tensor in contract[0]]
    taken = list(samples)
    expected = [_torch(module, sample, names) for sample in taken]
    rounded_module = with_rounded_weights(module, in_place=in_place)
    results = []
    for sample, exact in zip(taken, expected, strict=True):
        weights = _torch(rounded_module, sample, names)
        # A UNet's wrapper adds the conversion to noise, which is in float32, to the network.
        with rounded_results(getattr(rounded_module, "unet", rounded_module)):
            rounded = _torch(rounded_module, sample, names)
        results.append(TorchResult(sample, exact, weights, rounded))
    return results


def compare(  # noqa: PLR0913 - what is compared, with what, against which gates
    component: Component,
    package: Path | Sequence[Path],
    contract: Contract,
    expected: Sequence[TorchResult],
    *,
    quantity: str,
    gates: ProgramCheckConfig,
) -> Parity:
    """`check_program` on results that torch has left already, so that its model need not be there any more."""
    packages = [package] if isinstance(package, Path) else package
    comparison = _Comparison(component, load_packages(component, packages), contract)
    found: dict[str, list[ParityPoint]] = {}
    for result in expected:
        found.setdefault(result.sample.place, []).append(comparison.of(result))
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
                _refuse(
                    component,
                    parity,
                    point,
                    "without rounding",
                    expected=gates.min_exact_db,
                    found=point.exact_db,
                )
            note = (
                f"{point.place}: {point.exact_db:.1f} dB because of the weights' float16 alone: torch with such "
                f"weights reaches {point.weights_db:.1f} dB"
            )
        if not point.rounded_db >= gates.min_rounded_db:
            _refuse(
                component,
                parity,
                point,
                "with float16 results",
                expected=gates.min_rounded_db,
                found=point.rounded_db,
            )
        if not point.loss_db <= gates.max_loss_db:
            _refuse(
                component,
                parity,
                point,
                "with float16 results (as torch has them, less coreml_export.program_check.max_loss_db)",
                expected=point.rounded_db + point.loss_db - gates.max_loss_db,
                found=point.rounded_db,
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


@torch.no_grad()
def _torch(module: nn.Module, sample: Sample, names: Sequence[str]) -> Tensor:
    """The first output."""
    result = module(*(sample.inputs[name] for name in names))
    output: Tensor = result[0] if isinstance(result, tuple) else result
    return output


class _Comparison:
    """A program beside what torch computed; `watch` keeps what was noticed over all samples."""

    def __init__(self, component: Component, program: Program | ChunkedProgram, contract: Contract) -> None:
        self.program = program
        self.output = contract[1][0].name
        self.watch = Watch(component)

    def of(self, result: TorchResult) -> ParityPoint:
        """One sample's ratios. Raises ExportError as `check_program` does."""
        sample, expected = result.sample, result.exact
        exact, rounded = self._program(sample)

        def ratio(found: Tensor) -> float:
            return psnr(sample.quantity(expected), sample.quantity(found))

        return ParityPoint(
            place=sample.place,
            inputs=1,
            exact_db=ratio(exact),
            weights_db=ratio(result.weights),
            rounded_db=ratio(rounded),
            torch_rounded_db=ratio(result.rounded),
            loss_db=ratio(result.rounded) - ratio(rounded),
            output_exact_db=psnr(expected, exact),
            output_rounded_db=psnr(expected, rounded),
        )

    def _program(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The output of the exact and of the rounded run, every result of both seen by `watch`."""
        self.watch.start(sample.place)
        found: tuple[Tensor, Tensor] | None = None
        exact_run = self.program.execute(sample.inputs, rounded=False)
        rounded_run = self.program.execute(sample.inputs, rounded=True)
        for exact in exact_run:
            rounded = next(rounded_run)
            self.watch.see(exact, rounded)
            if exact.name == self.output:
                found = (exact.value, rounded.value)
            del exact, rounded  # before the next operation, see `Program.execute`
        if found is None:
            raise ExportError(f"{self.watch.component}: no operation of the program gives {self.output}")
        return found


def _worst(points: list[ParityPoint]) -> ParityPoint:
    """Of several samples at one place: the lowest of each ratio, and the mean loss, which one sample decides by chance."""
    lowest = {
        name: min(getattr(point, name) for point in points)
        for name in ParityPoint.model_fields
        if name.endswith("_db")
    }
    lowest["loss_db"] = fmean(point.loss_db for point in points)
    return ParityPoint(place=points[0].place, inputs=len(points), **lowest)


def _refuse(
    component: Component, parity: Parity, point: ParityPoint, how: str, *, expected: float, found: float
) -> None:
    raise ExportError(
        f"{component}: expected at least {expected:.1f} dB {how} on the {parity.quantity} ({point.place}), "
        f"found {found:.1f}; torch with float16 weights {point.weights_db:.1f}, with float16 results "
        f"{point.torch_rounded_db:.1f}; first jump of the error: {parity.error_jump or 'none'}; largest result "
        f"{parity.largest_activation:.3g} in {parity.largest_operation}. Correct the conversion, or set another gate "
        "under coreml_export.program_check"
    )
