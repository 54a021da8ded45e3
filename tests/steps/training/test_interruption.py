"""Signals that ask a training to end."""

import os
import signal
from collections.abc import Iterator

import pytest

from steps.training.interruption import STOP_SIGNALS, stop_flag


@pytest.fixture(autouse=True)
def _handlers(signals_are_heard: None) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_block_goes_on_and_is_told(number: signal.Signals) -> None:
    told = []
    with pytest.raises(RuntimeError), stop_flag(lambda: told.append(number)) as stop:
        os.kill(os.getpid(), number)
        assert stop.is_set()
        assert told == [number]
        raise RuntimeError


def test_a_signal_that_the_block_did_not_look_at_is_delivered_again() -> None:
    with pytest.raises(KeyboardInterrupt), stop_flag(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_flag(lambda: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, previous)
