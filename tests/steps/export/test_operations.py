"""Each operation against coremltools' own reference: what its MIL builder computes for constants, or numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function
from torch import Tensor

from steps.export.operations import OPERATIONS
from steps.files.errors import ExportError

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
Y = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5


def as_torch(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return [as_torch(item) for item in value]
    array = np.asarray(value)
    return torch.from_numpy(
        array if array.dtype.kind == "f" else array.astype(np.int64 if array.dtype != bool else bool)
    )


def builders_value(name: str, arguments: dict[str, Any]) -> Any:
    """What coremltools folds the operation to."""
    with Function({}):
        result = getattr(mb, name)(**arguments)
    return [var.val for var in result] if isinstance(result, (tuple, list)) else result.val


FOLDED: list[tuple[str, dict[str, Any]]] = [
    ("add", {"x": X, "y": Y}),
    ("sub", {"x": X, "y": Y}),
    ("mul", {"x": X, "y": Y}),
    ("real_div", {"x": X, "y": POSITIVE}),
    ("pow", {"x": POSITIVE, "y": Y}),
    ("maximum", {"x": X, "y": Y}),
    ("minimum", {"x": X, "y": Y}),
    ("equal", {"x": X, "y": X}),
    ("not_equal", {"x": X, "y": Y}),
    ("greater", {"x": X, "y": Y}),
    ("greater_equal", {"x": X, "y": Y}),
    ("less", {"x": X, "y": Y}),
    ("less_equal", {"x": X, "y": Y}),
    ("select", {"cond": X > 0, "a": X, "b": Y}),
    ("pad", {"x": X, "pad": np.int32([1, 0, 2, 3]), "mode": "constant", "constant_val": np.float32(0.5)}),
    ("square", {"x": X}),
    ("sqrt", {"x": POSITIVE}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.1)}),
    ("exp", {"x": X}),
    ("sin", {"x": X}),
    ("cos", {"x": X}),
    ("sigmoid", {"x": X}),
    ("tanh", {"x": X}),
    ("relu", {"x": X}),
    ("gelu", {"x": X, "mode": "EXACT"}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("softmax", {"x": X, "axis": 1}),
    ("cast", {"x": 3 * X, "dtype": "int32"}),
    ("reshape", {"x": X, "shape": np.array([3, -1], np.int32)}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("squeeze", {"x": X[:, None], "axes": [1]}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 1], "end": [2, 0, 4], "stride": [1, 1, 2], "end_mask": [False, True, False]}),
    ("slice_by_index", {"x": X, "begin": [1, 0, 0], "end": [0, 3, 4], "squeeze_mask": [True, False, False]}),
    ("split", {"x": X, "split_sizes": [1, 2], "axis": 1}),
    ("split", {"x": X, "num_splits": 2, "axis": 2}),
    ("concat", {"values": (X, Y), "axis": 1}),
    ("stack", {"values": (X, Y), "axis": 1}),
    ("reduce_mean", {"x": X, "axes": [1, 2], "keep_dims": True}),
    ("reduce_sum", {"x": X, "axes": [0], "keep_dims": False}),
    ("reduce_max", {"x": X, "axes": [2], "keep_dims": False}),
    ("reduce_argmax", {"x": X, "axis": 2, "keep_dims": False}),
    ("reduce_argmax", {"x": np.array([[1.0, 3.0, 3.0]], np.float32), "axis": 1, "keep_dims": True}),
    ("layer_norm", {"x": X, "axes": [2], "gamma": X[0, 0], "beta": Y[0, 0], "epsilon": np.float32(1e-3)}),
    ("linear", {"x": X[0], "weight": Y[0], "bias": np.ones(3, np.float32)}),
    ("matmul", {"x": X, "y": Y, "transpose_y": True}),
    ("matmul", {"x": X, "y": Y, "transpose_x": True}),
    ("einsum", {"values": (X[:, :, None], Y.transpose(0, 2, 1)[:, :, None]), "equation": "nchw,nwhu->nchu"}),
    ("gather", {"x": X, "indices": np.array([2, 0], np.int32), "axis": 1}),
    ("gather_along_axis", {"x": X, "indices": np.zeros((2, 1, 4), np.int32), "axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"), FOLDED, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FOLDED)]
)
def test_operation_equals_coremltools(name: str, arguments: dict[str, Any]) -> None:
    expected = builders_value(name, arguments)
    assert expected is not None, f"coremltools does not fold {name}; compare it with numpy"
    found = OPERATIONS[name](**{key: as_torch(value) for key, value in arguments.items()})
    pairs = zip(expected, found, strict=True) if isinstance(expected, list) else [(expected, found)]
    for one, other in pairs:
        assert np.shape(one) == tuple(other.shape)
        np.testing.assert_allclose(
            other.numpy().astype(np.float64), np.asarray(one, np.float64), rtol=1e-5, atol=1e-6
        )


def _convolve(x: np.ndarray, weight: np.ndarray, pad: list[int], stride: int) -> np.ndarray:
    """The definition, position by position; `pad` is top, bottom, left, right."""
    x = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[1]), (pad[2], pad[3])))
    rows = (x.shape[2] - weight.shape[2]) // stride + 1
    columns = (x.shape[3] - weight.shape[3]) // stride + 1
    result = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(rows):
        for j in range(columns):
            part = x[
                :, :, i * stride : i * stride + weight.shape[2], j * stride : j * stride + weight.shape[3]
            ]
            result[:, :, i, j] = np.einsum("ncij,ocij->no", part, weight)
    return result


@pytest.mark.parametrize("pad", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0]])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_by_definition(pad: list[int], stride: int) -> None:
    x, weight = RANDOM.standard_normal((2, 3, 5, 6)), RANDOM.standard_normal((4, 3, 3, 2))
    found = OPERATIONS["conv"](
        torch.from_numpy(x),
        torch.from_numpy(weight),
        pad_type="custom",
        pad=torch.tensor(pad),
        strides=torch.tensor([stride, stride]),
    )
    np.testing.assert_allclose(found.numpy(), _convolve(x, weight, pad, stride), atol=1e-9)


def test_silu_by_definition() -> None:
    found = OPERATIONS["silu"](torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), X / (1 + np.exp(-X)), rtol=1e-5)


def test_gather_nd_by_definition() -> None:
    found = OPERATIONS["gather_nd"](torch.from_numpy(X), torch.tensor([[1, 2], [0, 0]]))
    np.testing.assert_array_equal(found.numpy(), np.stack([X[1, 2], X[0, 0]]))


def test_batch_norm_by_definition() -> None:
    mean, variance, gamma, beta = (RANDOM.standard_normal(3).astype(np.float32) ** 2 for _ in range(4))
    found = OPERATIONS["batch_norm"](
        torch.from_numpy(X), *map(torch.from_numpy, (mean, variance, gamma, beta)), epsilon=torch.tensor(1e-3)
    )
    rows = (slice(None), None)
    expected = (X - mean[rows]) / np.sqrt(variance[rows] + 1e-3) * gamma[rows] + beta[rows]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_attention_by_definition() -> None:
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    weights = ((query @ key.transpose(-1, -2)) / 2.0).softmax(-1)
    found = OPERATIONS["scaled_dot_product_attention"](query, key, value)
    torch.testing.assert_close(found, weights @ value)


def test_upsampling_repeats() -> None:
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    found = OPERATIONS["upsample_nearest_neighbor"](x, torch.tensor(2.0), torch.tensor(3.0))
    assert found[0, 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2


def test_reshape_zero_counts_from_the_right() -> None:
    # The example in coremltools' reference of iOS17's reshape.
    assert OPERATIONS["reshape"](torch.zeros(2, 50), torch.tensor([1, 0, -1, 0])).shape == (1, 1, 2, 50)


@pytest.mark.parametrize("name", ["gather", "gather_nd"])
def test_index_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match="below 2, found 0 to 2"):
        OPERATIONS[name](torch.zeros(2, 3), torch.tensor([[0], [2]]))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("conv", {"weight": torch.zeros(1, 1, 1, 1), "pad_type": "same"}),
        ("concat", {"axis": torch.tensor(0), "interleave": torch.tensor(True)}),
        ("upsample_nearest_neighbor", {"scale_factor_height": torch.tensor(1.5)}),
        ("layer_norm", {"axes": torch.tensor([0])}),
        ("gather", {"indices": torch.tensor([0]), "batch_dims": torch.tensor(1)}),
        ("slice_by_index", {"begin": torch.ones(4), "end": torch.zeros(4), "stride": -torch.ones(4)}),
    ],
)  # fmt: skip
def test_variants_we_do_not_need_are_refused(name: str, arguments: dict[str, Any]) -> None:
    x: Tensor = torch.zeros(1, 1, 2, 2)
    first = {"values": [x]} if name == "concat" else {"x": x}
    with pytest.raises(ExportError, match="not known to the program check"):
        OPERATIONS[name](**first, **arguments)
