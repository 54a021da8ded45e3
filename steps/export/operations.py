"""What the operations of a converted program compute, in torch: what stands between a saved package and its numbers.

Only operations that our conversions produce, after coremltools' reference of its MIL operations. Each takes its
arguments by their MIL names. Numbers are float32, int64 or bool, whatever the program declares; rounding to float16
is the interpreter's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steps.export.layout import (
    concat,
    expand_dims,
    gather,
    gather_along_axis,
    gather_nd,
    integers,
    pad,
    reshape,
    slice_by_index,
    split,
    squeeze,
)
from steps.files.errors import ExportError

Operation = Callable[..., Any]


def cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; a fraction is cut off towards zero, as in C."""
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype == "bool":
        return x.bool()
    return x.long()


def conv(  # noqa: PLR0913 - MIL's own arguments
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Convolution over one or two axes. `pad` holds before and after of each axis, the first axis first."""
    axes = x.ndim - 2
    if axes not in (1, 2) or pad_type not in ("valid", "custom"):
        raise ExportError(
            f"conv over {axes} axes with the padding {pad_type!r} is not known to the program check"
        )
    if pad_type == "custom" and pad is not None:
        pairs = integers(pad)
        backwards = [side for axis in reversed(range(axes)) for side in pairs[2 * axis : 2 * axis + 2]]
        x = functional.pad(x, backwards)
    function: Operation = functional.conv2d if axes == 2 else functional.conv1d
    result: Tensor = function(
        x,
        weight,
        bias,
        stride=integers(strides) if strides is not None else 1,
        dilation=integers(dilations) if dilations is not None else 1,
        groups=int(groups) if groups is not None else 1,
    )
    return result


def matmul(
    x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None
) -> Tensor:
    """Batched matrix product."""
    x = x.transpose(-1, -2) if transpose_x is not None and bool(transpose_x) else x
    y = y.transpose(-1, -2) if transpose_y is not None and bool(transpose_y) else y
    return x @ y


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Attention scaled by the root of the width of a query."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Mean 0 and variance 1 over `axes`, the last ones of x."""
    dims = sorted(axis % x.ndim for axis in integers(axes)) if axes is not None else list(range(x.ndim))
    if dims != list(range(x.ndim - len(dims), x.ndim)):
        raise ExportError(f"layer_norm over the axes {dims} is not known to the program check")
    shape = [x.shape[dim] for dim in dims]
    return functional.layer_norm(x, shape, gamma, beta, float(epsilon) if epsilon is not None else 1e-5)


def batch_norm(  # noqa: PLR0913 - MIL's own arguments
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """x of (B, C, ...) with a mean, a variance, a factor and a summand per channel.

    coremltools makes it of a factor and a summand per channel that follow each other, such as group
    normalisation's.
    """
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=float(epsilon))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x times the normal distribution function, or MIL's two approximations of it."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Tensor | None = None, scale_factor_width: Tensor | None = None
) -> Tensor:
    """Repeats rows and columns."""
    for axis, factor in ((-2, scale_factor_height), (-1, scale_factor_width)):
        times = 1.0 if factor is None else float(factor)
        if times != int(times):
            raise ExportError(f"upsampling by {times} is not known to the program check")
        x = x.repeat_interleave(int(times), dim=axis)
    return x


def reduce_argmax(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    """Position of the (first) largest element."""
    dim = int(axis) if axis is not None else -1
    return x.argmax(dim, keepdim=keep_dims is not None and bool(keep_dims))


def _reduce(function: Operation) -> Operation:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        dims = integers(axes) if axes is not None else list(range(x.ndim))
        result: Tensor = function(x, dims, keepdim=keep_dims is not None and bool(keep_dims))
        return result

    return reduce


def _unary(function: Operation) -> Operation:
    return lambda x: function(x)


def _binary(function: Operation) -> Operation:
    return lambda x, y: function(x, y)


OPERATIONS: dict[str, Operation] = {
    "cast": cast,
    "identity": _unary(lambda x: x),
    "reshape": reshape,
    "transpose": lambda x, perm: x.permute(integers(perm)),
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "slice_by_index": slice_by_index,
    "split": split,
    "concat": concat,
    "stack": lambda values, axis: torch.stack(list(values), dim=int(axis)),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "real_div": _binary(torch.div),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
    "square": _unary(torch.square),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "exp": _unary(torch.exp),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "sigmoid": _unary(torch.sigmoid),
    "tanh": _unary(torch.tanh),
    "relu": _unary(torch.relu),
    "silu": _unary(functional.silu),
    "gelu": gelu,
    "softmax": lambda x, axis=-1: torch.softmax(x, dim=int(axis)),
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "reduce_max": _reduce(torch.amax),
    "reduce_argmax": reduce_argmax,
    "pad": pad,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
    "matmul": matmul,
    "einsum": lambda values, equation: torch.einsum(equation, *values),
    "conv": conv,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "gather": gather,
    "gather_nd": gather_nd,
    "gather_along_axis": gather_along_axis,
}
"""By MIL's name. Constants, compressed ones too, are the interpreter's."""
