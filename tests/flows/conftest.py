"""Shared by the tests of the flows: a task of Metaflow without Metaflow."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows import runtime


class Card(list[Any]):
    """Components, as Metaflow's card takes them."""

    def refresh(self) -> None:
        """Nobody looks."""


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Metaflow offers a task: its run and its card."""
    found = SimpleNamespace(
        card={"progress": Card()}, run_id="1", origin_run_id=None, flow_name="SnapFusionFlow"
    )
    monkeypatch.setattr(runtime, "current", found)
    return found
