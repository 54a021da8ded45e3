"""Runs a saved .mlpackage in torch, on any machine: Core ML itself exists on Apple's systems only.

Two ways: `exact` computes in float32 on the weights as they were saved, so that only the weights' rounding shows;
`rounded` also rounds every result that the program declares float16. The Neural Engine and the GPU add up in other
orders: what fails here fails there, what passes here has not run there.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.converters.mil.mil import Block, Operation, Var, types
from coremltools.converters.mil.mil import Program as MilProgram
from coremltools.proto.Model_pb2 import Model
from google.protobuf.message import DecodeError
from torch import Tensor

from steps.export.operations import OPERATIONS
from steps.files.errors import ExportError

# Constants of a program are kept in float32 between runs up to this many numbers (1 GiB).
_KEPT_NUMBERS = 1 << 28
_WEIGHTS = ("Data", "com.apple.CoreML", "weights")
# What coremltools and protobuf raise for files that are missing, cut off or of another target.
_UNREADABLE = (ValueError, RuntimeError, OSError, AssertionError, KeyError, DecodeError)

Value = Tensor | str
"""Of a variable of a program: numbers, or a word that says how to compute."""


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

    def __init__(self, component: str, block: Block) -> None:
        self.component = component
        self.block = block
        self.inputs = {name: tuple(int(n) for n in var.shape) for name, var in block.inputs.items()}
        self.outputs = {var.name: tuple(int(n) for n in var.shape) for var in block.outputs}
        self._check_known()
        self._last_use = self._find_last_use()
        self._constants: dict[str, Value] = {}
        self._keep = _numbers(block) <= _KEPT_NUMBERS

    @classmethod
    def load(cls, component: str, package: Path) -> "Program":
        """Read a package from disk. Raises ExportError when it cannot be read or holds an unknown operation."""
        return cls(component, read_package(component, package)[1].functions["main"])

    def with_constants(self, values: Mapping[str, Tensor]) -> "Program":
        """The same program with other numbers for some of its constants, by name."""
        changed = copy.copy(self)
        changed._constants = {**self._constants, **values}
        return changed

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
        values: dict[str, Value] = self._feed(inputs, rounded)
        for position, op in enumerate(self.block.operations):
            if _is_constant(op):
                values[op.outputs[0].name] = self._constant(op)
                continue
            results = self._one(op, values)
            for name in self._last_use.get(position, ()):
                values.pop(name, None)
            while results:
                executed = results.pop(0)
                values[executed.name] = _stored(executed, rounded)
                yield executed
                del executed  # before the next operation: at full size an attention's products are a gigabyte

    def _constant(self, op: Operation) -> Value:
        """The value of a constant, from the last run where the program is small enough to keep them all."""
        name = op.outputs[0].name
        if name in self._constants:
            return self._constants[name]
        value = _constant(op)
        if self._keep:
            self._constants[name] = value
        return value

    def _feed(self, inputs: Mapping[str, Tensor], rounded: bool) -> dict[str, Value]:
        found = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        if found != self.inputs:
            raise ExportError(f"{self.component}: expected the inputs {self.inputs}, found {found}")
        halves = {name: rounded and _is_half(var) for name, var in self.block.inputs.items()}
        return {
            name: _half(tensor.float()) if halves[name] else tensor.float() for name, tensor in inputs.items()
        }

    def _one(self, op: Operation, values: Mapping[str, Value]) -> list[Executed]:
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


class ChunkedProgram:
    """Packages that run one after the other: each reads the original inputs and the results of those before it."""

    def __init__(self, chunks: Sequence[Program]) -> None:
        self.component, self.chunks = chunks[0].component, tuple(chunks)
        self.outputs = dict(chunks[-1].outputs)
        self.inputs: dict[str, tuple[int, ...]] = {}
        made: dict[str, tuple[int, ...]] = {}
        for chunk in chunks:
            for name, shape in chunk.inputs.items():
                if made.get(name, shape) != shape or self.inputs.get(name, shape) != shape:
                    raise ExportError(f"{self.component}: the chunks disagree about the shape of {name}")
                if name not in made:
                    self.inputs[name] = shape
            made |= chunk.outputs

    @property
    def operations(self) -> dict[str, int]:
        """How many operations of each type, constants left out."""
        found: Counter[str] = sum((Counter(chunk.operations) for chunk in self.chunks), Counter())
        return dict(sorted(found.items()))

    def run(self, inputs: Mapping[str, Tensor], *, rounded: bool) -> dict[str, Tensor]:
        """See `Program.run`."""
        known = dict(inputs)
        for chunk in self.chunks:
            known |= chunk.run(_named(known, chunk), rounded=rounded)
        return {name: known[name] for name in self.outputs}

    def execute(self, inputs: Mapping[str, Tensor], *, rounded: bool) -> Iterator[Executed]:
        """See `Program.execute`."""
        known = dict(inputs)
        for chunk in self.chunks:
            for executed in chunk.execute(_named(known, chunk), rounded=rounded):
                if executed.name in chunk.outputs:
                    known[executed.name] = _stored(executed, rounded)
                yield executed
                del executed


def load_packages(component: str, packages: Sequence[Path]) -> Program | ChunkedProgram:
    """A component of one package, or of several that run in this order. Raises ExportError as `Program.load` does."""
    programs = [Program.load(component, package) for package in packages]
    return programs[0] if len(programs) == 1 else ChunkedProgram(programs)


def _named(known: Mapping[str, Tensor], chunk: Program) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in known.items() if name in chunk.inputs}


def read_package(component: str, package: Path) -> tuple[Model, MilProgram]:
    """The specification of a package and its program, as coremltools knows them. Raises ExportError as `Program.load`."""
    try:
        spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
        weights = str(package.joinpath(*_WEIGHTS))
        return spec, load_program(spec, spec.specificationVersion, file_weights_dir=weights)
    except _UNREADABLE as error:
        raise ExportError(f"{component}: the package {package} cannot be read back: {error}") from error


def _numbers(block: Block) -> int:
    """How many numbers the constants hold."""
    shapes = (op.outputs[0].shape for op in block.operations if _is_constant(op))
    return sum(math.prod(int(n) for n in shape) for shape in shapes)


def _is_constant(op: Operation) -> bool:
    kind: str = op.op_type
    return kind == "const" or kind.startswith("constexpr_")


def _constant(op: Operation) -> Value:
    """The value of a constant, decompressed where it is compressed: a tensor, or a string as it is."""
    value = op.outputs[0].val if op.op_type == "const" else op.materialized_val_inference()
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.astype(np.bool_ if array.dtype.kind == "b" else np.int64))


def _inputs(op: Operation) -> Iterator[Var]:
    for var in op.inputs.values():
        if isinstance(var, (list, tuple)):
            yield from var
        else:
            yield var


def _look_up(var: Var | Sequence[Var], values: Mapping[str, Value]) -> Value | list[Value]:
    if isinstance(var, Sequence):
        return [values[item.name] for item in var]
    return values[var.name]


def _is_half(var: Var) -> bool:
    half: bool = var.dtype == types.fp16
    return half


def _half(value: Tensor) -> Tensor:
    return value.half().float()


def _stored(executed: Executed, rounded: bool) -> Tensor:
    """What the next operation reads."""
    if rounded and executed.half and executed.value.is_floating_point():
        return _half(executed.value)
    return executed.value
