"""The cache is tested on a local store: `tests/steps/store/test_contract.py` proves that the stores are alike."""

from collections.abc import Callable
from pathlib import Path

import pytest

from steps.cache import leases
from steps.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store", durable=False)  # which waits for no disk


class Clock:
    """Time that passes only when somebody waits; `meanwhile` happens whenever somebody does."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def now(self) -> float:
        return self.time_s

    def pause(self, seconds: float) -> None:
        self.time_s += 10 * seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leases, "now", clock.now)
    monkeypatch.setattr(leases, "pause", clock.pause)
    return clock
