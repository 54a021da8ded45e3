from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from steps.export.compression import weights
from steps.files.errors import ExportError


def program(**values: Any) -> Any:
    """Constants by name; `table` is looked up in, everything else multiplied with."""
    operations = []
    for name, value in values.items():
        user = SimpleNamespace(op_type="gather" if name == "table" else "linear")
        output = SimpleNamespace(val=value, child_ops=[user])
        operations.append(SimpleNamespace(op_type="const", name=name, outputs=[output]))
    return SimpleNamespace(component="unet", block=SimpleNamespace(operations=operations))


def test_large_matrices_are_compressed_and_embeddings_are_not() -> None:
    large = np.zeros((64, 64), np.float16)
    found = weights(
        program(a=large, table=large, small=large[:2], vector=large.ravel(), ids=large.astype(int))
    )
    assert list(found) == ["a"]


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    broken = np.array([[1.0, np.inf]], np.float16)
    with pytest.raises(
        ExportError, match="unet: expected finite weights, found 1 NaN or infinite values in b"
    ):
        weights(program(a=np.zeros((64, 64), np.float16), b=broken))
