from collections.abc import Mapping

from steps.export.mixed_bits import Sensitivity, allot, search, size


def sensitive(numbers: int, at_4: float) -> Sensitivity:
    """Two bits more: a sixteenth of the error."""
    return Sensitivity(numbers, {2: 16 * at_4, 4: at_4, 6: at_4 / 16, 8: at_4 / 256})


WEIGHTS = {
    "delicate": sensitive(10_000, 1.0),
    "robust": sensitive(10_000, 0.001),
    "tiny": sensitive(100, 1.0),
}


def test_bits_go_where_they_matter() -> None:
    allowed = sum(item.error[6] for item in WEIGHTS.values())
    bits = allot(WEIGHTS, allowed)
    assert bits["robust"] < 6 <= bits["delicate"]
    assert sum(WEIGHTS[name].error[count] for name, count in bits.items()) <= allowed
    assert size(WEIGHTS, bits) < size(WEIGHTS, dict.fromkeys(WEIGHTS, 6))


def test_nothing_allowed_is_the_most_bits() -> None:
    assert set(allot(WEIGHTS, 0.0).values()) == {8}


def test_search_keeps_the_smallest_that_is_good_enough() -> None:
    limit = 2 * sum(item.error[6] for item in WEIGHTS.values())
    tried = []

    def good_enough(bits: Mapping[str, int]) -> bool:
        tried.append(dict(bits))
        return sum(WEIGHTS[name].error[count] for name, count in bits.items()) <= limit

    found = search(WEIGHTS, 6, good_enough)
    assert found is not None and good_enough(found)
    assert size(WEIGHTS, found) == min(size(WEIGHTS, bits) for bits in list(tried) if good_enough(bits))


def test_search_gives_up() -> None:
    assert search(WEIGHTS, 6, lambda bits: False) is None
