"""What the operations of a converted program compute, in torch: what stands between a saved package and its numbers.

Only operations that our conversions produce, after coremltools' reference of its MIL operations. Each takes its
arguments by their MIL names. Numbers are float32, int64 or bool, whatever the program declares; rounding to float16
is the interpreter's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steps.files.errors import ExportError

Operation = Callable[..., Any]


def cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; a fraction is cut off towards zero, as in C."""
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype == "bool":
        return x.bool()
    return x.long()


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """0 stands for x's own size, counted from the right; -1 for what is left."""
    sizes = _list(shape)
    offset = x.ndim - len(sizes)
    own = [x.shape[i + offset] if i + offset >= 0 else 1 for i in range(len(sizes))]
    return x.reshape([own[i] if size == 0 else size for i, size in enumerate(sizes)])


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1; `axes` are positions in the result."""
    sizes = _list(axes)
    rank = x.ndim + len(sizes)
    for axis in sorted(axis % rank for axis in sizes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drops axes of size 1, all of them without `axes`."""
    return x.squeeze() if axes is None else x.squeeze(tuple(_list(axes)))


def slice_by_index(  # noqa: PLR0913 - MIL's own arguments
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """x[begin:end:stride] along every axis; a mask overrides begin or end, or takes the single element."""
    rank = x.ndim
    steps = _list(stride) if stride is not None else [1] * rank
    masks = [_list(mask) if mask is not None else [0] * rank for mask in (begin_mask, end_mask, squeeze_mask)]
    index: list[int | slice] = []
    for axis, (first, last, step) in enumerate(zip(_list(begin), _list(end), steps, strict=True)):
        if step < 1:
            raise ExportError(f"slice_by_index with the stride {step} is not known to the program check")
        if masks[2][axis]:
            index.append(first)
        else:
            index.append(slice(None if masks[0][axis] else first, None if masks[1][axis] else last, step))
    return x[tuple(index)]


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Into parts of `split_sizes`, or `num_splits` equal ones."""
    dim = int(axis)
    sizes = _list(split_sizes) if split_sizes is not None else []
    if num_splits is not None and not sizes:
        sizes = [x.shape[dim] // int(num_splits)] * int(num_splits)
    return torch.split(x, sizes, dim=dim)


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """One after the other along `axis`."""
    if interleave is not None and bool(interleave):
        raise ExportError("concat with interleave is not known to the program check")
    return torch.cat(list(values), dim=int(axis))


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
        pairs = _list(pad)
        backwards = [side for axis in reversed(range(axes)) for side in pairs[2 * axis : 2 * axis + 2]]
        x = functional.pad(x, backwards)
    function: Operation = functional.conv2d if axes == 2 else functional.conv1d
    result: Tensor = function(
        x,
        weight,
        bias,
        stride=_list(strides) if strides is not None else 1,
        dilation=_list(dilations) if dilations is not None else 1,
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


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """Adds to the last axes: `pad` holds before and after of each, the first of these axes first."""
    pairs = list(zip(_list(pad)[::2], _list(pad)[1::2], strict=True))
    widths = [width for pair in reversed(pairs) for width in pair]  # torch names the last axis first
    if mode == "constant":
        return functional.pad(x, widths, value=float(constant_val))
    return functional.pad(x, widths, mode=mode)


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Mean 0 and variance 1 over `axes`, the last ones of x."""
    dims = sorted(axis % x.ndim for axis in _list(axes)) if axes is not None else list(range(x.ndim))
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


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    """Rows of x along `axis`. Raises ExportError for an index that x does not have."""
    if batch_dims is not None and int(batch_dims) != 0:
        raise ExportError("gather with batch_dims is not known to the program check")
    dim = (int(axis) if axis is not None else 0) % x.ndim
    flat = _in_range("gather", indices, x.shape[dim]).reshape(-1)
    return x.index_select(dim, flat).reshape(*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """x at the positions in `indices`' last axis. Raises ExportError for an index that x does not have."""
    if batch_dims is not None and int(batch_dims) != 0:
        raise ExportError("gather_nd with batch_dims is not known to the program check")
    parts = [
        _in_range("gather_nd", part, size) for part, size in zip(indices.unbind(-1), x.shape, strict=False)
    ]
    return x[tuple(parts)]


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    """One element of x along `axis` per index."""
    dim = (int(axis) if axis is not None else 0) % x.ndim
    return x.gather(dim, _in_range("gather_along_axis", indices, x.shape[dim]))


def reduce_argmax(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    """Position of the (first) largest element."""
    dim = int(axis) if axis is not None else -1
    return x.argmax(dim, keepdim=keep_dims is not None and bool(keep_dims))


def _reduce(function: Operation) -> Operation:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        dims = _list(axes) if axes is not None else list(range(x.ndim))
        result: Tensor = function(x, dims, keepdim=keep_dims is not None and bool(keep_dims))
        return result

    return reduce


def _unary(function: Operation) -> Operation:
    return lambda x: function(x)


def _binary(function: Operation) -> Operation:
    return lambda x, y: function(x, y)


def _list(tensor: Any) -> list[int]:
    return [int(value) for value in torch.as_tensor(tensor).reshape(-1).tolist()]


def _in_range(name: str, indices: Tensor, size: int) -> Tensor:
    low, high = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if low < -size or high >= size:
        raise ExportError(f"{name}: expected indices below {size}, found {low} to {high}")
    return indices.long() % size


OPERATIONS: dict[str, Operation] = {
    "cast": cast,
    "identity": _unary(lambda x: x),
    "reshape": reshape,
    "transpose": lambda x, perm: x.permute(_list(perm)),
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
