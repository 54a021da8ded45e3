"""Shared by all tests: one torch thread (two cores are shared by everything) and no global randomness."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_fixed_seed() -> None:
    torch.set_num_threads(1)
    # A stage switches these on for its process; a test must not inherit them from the one before.
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
