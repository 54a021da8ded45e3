"""Operations of a converted program that only move numbers: shapes, pieces, positions (see `operations`)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from steps.files.errors import ExportError


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """0 stands for x's own size, counted from the right; -1 for what is left."""
    sizes = integers(shape)
    offset = x.ndim - len(sizes)
    own = [x.shape[i + offset] if i + offset >= 0 else 1 for i in range(len(sizes))]
    return x.reshape([own[i] if size == 0 else size for i, size in enumerate(sizes)])


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1; `axes` are positions in the result."""
    sizes = integers(axes)
    rank = x.ndim + len(sizes)
    for axis in sorted(axis % rank for axis in sizes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drops axes of size 1, all of them without `axes`."""
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


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
    steps = integers(stride) if stride is not None else [1] * rank
    masks = [
        integers(mask) if mask is not None else [0] * rank for mask in (begin_mask, end_mask, squeeze_mask)
    ]
    index: list[int | slice] = []
    for axis, (first, last, step) in enumerate(zip(integers(begin), integers(end), steps, strict=True)):
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
    sizes = integers(split_sizes) if split_sizes is not None else []
    if num_splits is not None and not sizes:
        sizes = [x.shape[dim] // int(num_splits)] * int(num_splits)
    return torch.split(x, sizes, dim=dim)


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    """One after the other along `axis`."""
    if interleave is not None and bool(interleave):
        raise ExportError("concat with interleave is not known to the program check")
    return torch.cat(list(values), dim=int(axis))


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """Adds to the last axes: `pad` holds before and after of each, the first of these axes first."""
    pairs = list(zip(integers(pad)[::2], integers(pad)[1::2], strict=True))
    widths = [width for pair in reversed(pairs) for width in pair]  # torch names the last axis first
    if mode == "constant":
        return functional.pad(x, widths, value=float(constant_val))
    return functional.pad(x, widths, mode=mode)


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


def integers(tensor: Tensor) -> list[int]:
    """The numbers of a tensor of any shape."""
    return [int(value) for value in torch.as_tensor(tensor).reshape(-1).tolist()]


def _in_range(name: str, indices: Tensor, size: int) -> Tensor:
    low, high = (int(indices.min()), int(indices.max())) if indices.numel() else (0, 0)
    if low < -size or high >= size:
        raise ExportError(f"{name}: expected indices below {size}, found {low} to {high}")
    return indices.long() % size
