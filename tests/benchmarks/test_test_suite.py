"""What is read of pytest's output."""

import pytest

from benchmarks.test_suite import outcomes


def test_the_last_summary_counts() -> None:
    output = "1 passed in 2s\n...\n2 failed, 1952 passed, 6 skipped in 832.36s (0:13:52)\n"
    assert outcomes(output) == {"failed": 2, "passed": 1952, "skipped": 6}


def test_tests_that_were_cut_off_are_no_measure() -> None:
    with pytest.raises(ValueError, match="summary is missing"):
        outcomes("....")
