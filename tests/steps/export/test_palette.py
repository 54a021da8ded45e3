import numpy as np
import pytest
from sklearn.cluster import KMeans

from steps.export.palette import palette, palettized


def weight(seed: int = 0, spread: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (16, 16, 3, 3)).astype(np.float16)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(found.astype(np.float64) - expected.astype(np.float64)).mean())


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_as_good_as_scikit_learn(bits: int) -> None:
    values = weight()
    flat = values.reshape(-1, 1).astype(np.float32)
    reference = KMeans(2**bits, n_init=1, random_state=0).fit(flat).inertia_ / flat.size
    assert error(palettized(values, bits), values) < 1.03 * reference


def test_every_number_gets_its_nearest_entry() -> None:
    values = weight()
    table, indices = palette(values, 4)
    assert (len(table), table.dtype, indices.dtype, indices.shape) == (16, np.float16, np.uint8, (2304,))
    assert (np.diff(table.astype(np.float32)) >= 0).all()
    distances = np.abs(values.reshape(-1, 1).astype(np.float32) - table.astype(np.float32))
    chosen = distances[np.arange(values.size), indices]
    np.testing.assert_allclose(chosen, distances.min(1), atol=1e-4)


def test_few_different_numbers_are_kept_exactly() -> None:
    values = np.array([[0.5, -1.0], [0.25, 0.5]], np.float16)
    table, _ = palette(values, 2)
    assert len(table) == 4
    np.testing.assert_array_equal(palettized(values, 2), values)


def test_more_bits_err_less_and_nothing_is_drawn_at_random() -> None:
    values = weight(spread=0.3)
    errors = [error(palettized(values, bits), values) for bits in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 100
    np.testing.assert_array_equal(palettized(values, 6), palettized(values.copy(), 6))
