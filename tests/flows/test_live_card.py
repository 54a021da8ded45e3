"""What a card shows while its task works, and what is left there when it has ended."""

import re
from typing import Any

import pytest

from flows import live_card
from flows.live_card import CardProgress
from tests.flows.conftest import Card


class LiveCard(Card):
    """As Metaflow's: refreshes are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.refreshes: list[bool] = []

    def refresh(self, *, force: bool = False) -> None:
        self.refreshes.append(force)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that passes when a test says so."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(live_card.time, "monotonic", lambda: Clock.now)
    return Clock


def bar(card: LiveCard) -> dict[str, Any]:
    found: dict[str, Any] = card[0].render()
    return found


def test_the_last_state_of_a_bar_stays(clock: Any) -> None:
    """Bars of finished tasks stood at 64 of 128."""
    card = LiveCard()
    progress = CardProgress(card)
    progress.start("evaluation", 128)
    progress.update(64)
    clock.now += 0.1  # so soon that nothing is sent
    progress.update(128)
    assert bar(card)["value"] == 128
    progress.close()
    assert (bar(card)["value"], bar(card)["max"]) == (128, 128)


def test_the_bar_tells_speed_time_left_memory_and_cost(clock: Any) -> None:
    card = LiveCard()
    progress = CardProgress(card, price_per_hour=36.0)
    progress.start("training", 1000)
    progress.update(400)  # where a checkpoint continues
    for done in (500, 600):
        clock.now += 10.0
        progress.update(done, loss=0.25)
    words = bar(card)["details"]
    assert re.fullmatch(r"loss 0\.25, 10/s, 40 s left, \d+\.\d\d GiB, cost 0\.20", words)


def test_the_curve_has_every_loss_until_it_is_long(clock: Any) -> None:
    card = LiveCard()
    progress = CardProgress(card)
    progress.start("training", 1000)
    assert len(card) == 1  # what has no loss has no curve
    for done in range(1, 1001):
        progress.update(done, loss=float(done))
    progress.close()
    values = card[1].render()["spec"]["data"]["values"]
    assert values[0] == {"iteration": 1, "loss": 1.0}
    assert 100 <= len(values) <= 200 and values[-1]["iteration"] > 990
    steps = {b["iteration"] - a["iteration"] for a, b in zip(values, values[1:], strict=False)}
    assert len(steps) == 1


class Painter:
    """Draws in two seconds."""

    def __init__(self, clock: Any) -> None:
        self.drawn, self._clock = 0, clock

    def draw(self, _: Any) -> bytes:
        self.drawn += 1
        self._clock.now += 2.0
        return b"\x89PNG\r\n\x1a\n"

    def captions(self) -> list[str]:
        return ["<b>Nepal</b>", "red flag"]


def test_pictures_take_a_small_share_of_the_time(clock: Any) -> None:
    card = LiveCard()
    progress = CardProgress(card)
    painter = progress.painter = Painter(clock)
    progress.start("training", 1000)
    progress.look(0, None)
    progress.look(10, None)  # two of two seconds went into pictures
    assert painter.drawn == 1
    clock.now += 60.0
    progress.look(20, None)
    assert painter.drawn == 2 and card.refreshes == [True, True]
    rows = [row[0] for row in card[1]._data]
    assert rows == ["0", "20"]
    assert card[2].render() == {"type": "text", "text": "Pictures for: <b>Nepal</b>; red flag"}


def test_the_start_and_the_newest_pictures_stay(clock: Any) -> None:
    card = LiveCard()
    progress = CardProgress(card)
    progress.painter = Painter(clock)
    progress.start("training", 1000)
    for iteration in range(0, 100, 10):
        clock.now += 1000.0
        progress.look(iteration, None)
    assert [row[0] for row in card[1]._data] == ["0", "60", "70", "80", "90"]


def test_a_training_goes_on_without_pictures_that_cannot_be_drawn(
    clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Painter):
        def draw(self, _: Any) -> bytes:
            raise RuntimeError("out of memory")

    card = LiveCard()
    progress = CardProgress(card)
    progress.painter = Broken(clock)
    progress.start("training", 10)
    for iteration in (0, 5):
        progress.look(iteration, None)
    assert caplog.messages == ["no pictures of this training: out of memory"] and len(card) == 1


def test_a_task_without_a_painter_looks_at_nothing() -> None:
    CardProgress(LiveCard()).look(0, None)
