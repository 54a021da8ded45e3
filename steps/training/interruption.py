"""Signals that ask a program to end: SIGTERM (a spot instance that is taken away, a scheduler, `docker stop`), SIGINT
(Ctrl-C) and SIGHUP (a terminal that is closed).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def catch_stop_signals(handler: Callable[[int, Any], None]) -> dict[signal.Signals, Any]:
    """Have `handler` called for these signals; returns the handlers that were there before. Main thread only.

    One that is ignored stays so: `nohup`, or a shell that works in the background, wants it.
    """
    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    previous = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}
    for number in previous:
        signal.signal(number, handler)
    return previous


@contextmanager
def stop_flag(on_signal: Callable[[], None]) -> Iterator[threading.Event]:
    """Turn these signals into an event for as long as the block lasts, and call `on_signal` at once.

    The training loop stops at the next micro-batch after the event. A block that comes to its end without an exception
    has not looked at the event in time: then the signal is delivered again.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signal handlers can only be set in the main thread
        return
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        on_signal()
        event.set()

    previous = catch_stop_signals(note)
    try:
        yield event
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
    if received:
        signal.raise_signal(received[0])
