"""Which operations stay in float32 when a component is converted to float16.

Two paths need it. The sinusoidal timestep features: near t = 999 neighbouring float16 numbers lie 0.5 apart,
so that the angle t * frequency would be wrong by up to a quarter radian. And the end of a velocity UNet,
sigma z + alpha v: the sampler divides its error by alpha_t, which is about 0.07 at t = 999.
"""

from collections import Counter

from coremltools.converters.mil.mil import Operation
from coremltools.proto.MIL_pb2 import Operation as SavedOperation
from coremltools.proto.Model_pb2 import Model

from steps.files.errors import ExportError

_ANGLES = frozenset({"sin", "cos"})
_TOWARDS_ANGLES = frozenset({"mul", "expand_dims", "reshape", "squeeze", "cast", "concat", "slice_by_index"})
_TOWARDS_NOISE = frozenset(
    {"mul", "gather", "gather_nd", "gather_along_axis", "reshape", "expand_dims", "squeeze"}
)
_FLOAT32 = 11  # MIL's DataType of the saved program
_LONGEST_PATH = 6


def may_be_float16(op: Operation) -> bool:
    """The `op_selector` of coremltools' FP16ComputePrecision: False keeps the operation in float32."""
    return not (_leads_to_angles(op, _LONGEST_PATH) or _ends_in_noise(op, _LONGEST_PATH))


def may_be_float16_in_a_block(op: Operation) -> bool:
    """The same for a part of a UNet, whose last addition is no conversion to noise."""
    return not _leads_to_angles(op, _LONGEST_PATH)


def _leads_to_angles(op: Operation, depth: int) -> bool:
    if op.op_type in _ANGLES:
        return True
    if depth == 0 or op.op_type not in _TOWARDS_ANGLES:
        return False
    return any(_leads_to_angles(child, depth - 1) for output in op.outputs for child in output.child_ops)


def _ends_in_noise(op: Operation, depth: int) -> bool:
    """True for the sum that is the program's output, and for what is multiplied and looked up only for it."""
    if op.op_type == "add":
        return any(output in op.enclosing_block.outputs for output in op.outputs)
    if depth == 0 or op.op_type not in _TOWARDS_NOISE:
        return False
    children = [child for output in op.outputs for child in output.child_ops]
    return bool(children) and all(_ends_in_noise(child, depth - 1) for child in children)


def float32_operations(spec: Model) -> dict[str, int]:
    """Operations of a saved program with a float32 result, by type, constants and casts left out."""
    found = Counter(
        op.type
        for op in _operations(spec)
        if op.type not in ("const", "cast")
        and any(output.type.tensorType.dataType == _FLOAT32 for output in op.outputs)
    )
    return dict(sorted(found.items()))


def check_precision(spec: Model, *, velocity: bool) -> None:
    """Raises ExportError when a saved UNet's timestep features or noise conversion are not in float32."""
    for op in _operations(spec):
        if op.type in _ANGLES and op.outputs[0].type.tensorType.dataType != _FLOAT32:
            raise ExportError(f"unet: the timestep features' {op.type} is in float16 and must be in float32")
    last = _operations(spec)[-1]
    if velocity and (last.type != "add" or last.outputs[0].type.tensorType.dataType != _FLOAT32):
        raise ExportError(f"unet: the noise must come from a float32 addition, found {last.type}")


def _operations(spec: Model) -> list[SavedOperation]:
    main = spec.mlProgram.functions["main"]
    return list(main.block_specializations[main.opset].operations)
