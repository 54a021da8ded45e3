"""Runs a saved .mlpackage in torch, on any machine: Core ML itself exists on Apple's systems only.

Two ways: `exact` computes in float32 on the weights as they were saved, so that only the weights' rounding shows;
`rounded` also rounds every result that the program declares float16. The Neural Engine and the GPU add up in other
orders: what fails here fails there, what passes here has not run there.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.converters.mil.mil import types
from google.protobuf.message import DecodeError
from torch import Tensor

from steps.errors import ExportError
from steps.export.operations import OPERATIONS

_WEIGHTS = ("Data", "com.apple.CoreML", "weights")
# What coremltools and protobuf raise for files that are missing, cut off or of another target.
_UNREADABLE = (ValueError, RuntimeError, OSError, AssertionError, KeyError, DecodeError)


@dataclass(frozen=True)
class Executed:
    """One result of one operation. `half` where the program declares it float16, `value` before that rounding."""

    name: str
    operation: str
    value: Tensor
    half: bool
    sources: tuple[str, ...]


class Program:
    """A loaded package: `inputs` and `outputs` are names and shapes."""

    def __init__(self, component: str, block: Any) -> None:
        self.component = component
        self.block = block
        self.inputs = {name: tuple(int(n) for n in var.shape) for name, var in block.inputs.items()}
        self.outputs = {var.name: tuple(int(n) for n in var.shape) for var in block.outputs}
        self._check_known()
        self._last_use = self._find_last_use()

    @classmethod
    def load(cls, component: str, package: Path) -> "Program":
        """Read a package from disk. Raises ExportError when it cannot be read or holds an unknown operation."""
        try:
            spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
            program = load_program(
                spec, spec.specificationVersion, file_weights_dir=str(package.joinpath(*_WEIGHTS))
            )
        except _UNREADABLE as error:
            raise ExportError(f"{component}: the package {package} cannot be read back: {error}") from error
        return cls(component, program.functions["main"])

    @property
    def operations(self) -> dict[str, int]:
        """How many operations of each type, constants left out."""
        found = Counter(op.op_type for op in self.block.operations if not _is_constant(op))
        return dict(sorted(found.items()))

    def run(self, inputs: Mapping[str, Tensor], *, rounded: bool) -> dict[str, Tensor]:
        """Outputs by name, float32, of inputs by name. Raises ExportError naming the operation that fails."""
        outputs: dict[str, Tensor] = {}
        for executed in self.execute(inputs, rounded=rounded):
            if executed.name in self.outputs:
                outputs[executed.name] = _stored(executed, rounded)
        return outputs

    @torch.no_grad()
    def execute(self, inputs: Mapping[str, Tensor], *, rounded: bool) -> Iterator[Executed]:
        """Run operation by operation; what is no longer needed is dropped. Raises ExportError as `run` does."""
        values: dict[str, Any] = self._feed(inputs, rounded)
        for position, op in enumerate(self.block.operations):
            if _is_constant(op):
                values[op.outputs[0].name] = _constant(op)
                continue
            for executed in self._one(op, values):
                values[executed.name] = _stored(executed, rounded)
                yield executed
            for name in self._last_use.get(position, ()):
                values.pop(name, None)

    def _feed(self, inputs: Mapping[str, Tensor], rounded: bool) -> dict[str, Any]:
        found = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        if found != self.inputs:
            raise ExportError(f"{self.component}: expected the inputs {self.inputs}, found {found}")
        halves = {name: rounded and _is_half(var) for name, var in self.block.inputs.items()}
        return {
            name: _half(tensor.float()) if halves[name] else tensor.float() for name, tensor in inputs.items()
        }

    def _one(self, op: Any, values: Mapping[str, Any]) -> list[Executed]:
        arguments = {name: _look_up(var, values) for name, var in op.inputs.items()}
        try:
            result = OPERATIONS[op.op_type](**arguments)
        except (ExportError, RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ExportError(f"{self.component}: {op.op_type} {op.name}: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        sources = tuple(var.name for var in _inputs(op))
        executed = []
        for var, value in zip(op.outputs, results, strict=True):
            if tuple(value.shape) != tuple(var.shape):
                raise ExportError(
                    f"{self.component}: {op.op_type} {op.name}: the program declares {tuple(var.shape)}, "
                    f"the program check computes {tuple(value.shape)}"
                )
            executed.append(Executed(var.name, op.op_type, value, _is_half(var), sources))
        return executed

    def _check_known(self) -> None:
        for op in self.block.operations:
            if not _is_constant(op) and op.op_type not in OPERATIONS:
                raise ExportError(
                    f"{self.component}: the program check does not know the operation {op.op_type} ({op.name}); "
                    "add it to steps/export/operations.py"
                )

    def _find_last_use(self) -> dict[int, list[str]]:
        last: dict[str, int] = {}
        for position, op in enumerate(self.block.operations):
            for var in _inputs(op):
                last[var.name] = position
        by_position: dict[int, list[str]] = {}
        for name, position in last.items():
            by_position.setdefault(position, []).append(name)
        return by_position


def _is_constant(op: Any) -> bool:
    kind: str = op.op_type
    return kind == "const" or kind.startswith("constexpr_")


def _constant(op: Any) -> Any:
    """The value of a constant, decompressed where it is compressed: a tensor, or a string as it is."""
    value = op.outputs[0].val if op.op_type == "const" else op.materialized_val_inference()
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.astype(np.bool_ if array.dtype.kind == "b" else np.int64))


def _inputs(op: Any) -> Iterator[Any]:
    for var in op.inputs.values():
        if isinstance(var, (list, tuple)):
            yield from var
        else:
            yield var


def _look_up(var: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(var, (list, tuple)):
        return [values[item.name] for item in var]
    return values[var.name]


def _is_half(var: Any) -> bool:
    half: bool = var.dtype == types.fp16
    return half


def _half(value: Tensor) -> Tensor:
    return value.half().float()


def _stored(executed: Executed, rounded: bool) -> Tensor:
    """What the next operation reads."""
    if rounded and executed.half and executed.value.is_floating_point():
        return _half(executed.value)
    return executed.value
