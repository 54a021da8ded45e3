"""SIGTERM: what a spot instance or a scheduler sends before it takes the machine away."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_flag(on_signal: Callable[[], None]) -> Iterator[threading.Event]:
    """Turn SIGTERM into an event for as long as the block lasts, and call `on_signal` at once.

    The training loop stops at the next step after the event.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signal handlers can only be set in the main thread
        return

    def note(*_: object) -> None:
        on_signal()
        event.set()

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
