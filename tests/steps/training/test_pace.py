"""How fast a training goes; its learning rate and the pauses between checkpoints: test_loop.py."""

import pytest

from steps.training import pace
from steps.training.pace import Speed


def test_speed_is_of_the_interval_without_what_went_into_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    speed = Speed()
    speed.close_interval()
    speed.add(30)
    speed.add(10)
    speed.leave_out(3.0)
    now = 108.0
    assert speed.close_interval() == 8.0
    now = 110.0
    speed.add(6)
    assert speed.close_interval() == 3.0
    assert speed.values[1:] == [8.0, 3.0]
