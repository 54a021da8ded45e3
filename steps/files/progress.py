"""Ways to show how far a piece of work has come."""

import logging
import sys
import time
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

logger = logging.getLogger(__name__)
_LOG_S = 15.0


class Progress(Protocol):
    """Shows how far a piece of work has come."""

    def start(self, description: str, total: int) -> None:
        """Begin a piece of work of `total` units."""

    def update(self, done: int, **metrics: float) -> None:
        """`done` units are finished; `metrics` are shown beside them."""

    def close(self) -> None:
        """The piece of work is finished."""


@runtime_checkable
class Watcher(Protocol):
    """A progress that wants to see the states of a training."""

    def look(self, iteration: int, model: Any) -> None:
        """The model after so many iterations, with the weights that would be handed on. It must come back as it was."""


class NullProgress:
    """Shows nothing."""

    def start(self, description: str, total: int) -> None:
        """See Progress."""

    def update(self, done: int, **metrics: float) -> None:
        """See Progress."""

    def close(self) -> None:
        """See Progress."""


class LogProgress:
    """A log line of key=value at the start, once in a while and at the end, for whoever collects lines."""

    def __init__(self) -> None:
        self._description, self._total, self._done = "", 0, 0
        self._metrics: dict[str, float] = {}
        self._said = 0.0

    def start(self, description: str, total: int) -> None:
        """See Progress."""
        self._description, self._total, self._done, self._metrics = description, total, 0, {}
        self._say()

    def update(self, done: int, **metrics: float) -> None:
        """See Progress."""
        self._done, self._metrics = done, self._metrics | metrics
        if time.monotonic() - self._said >= _LOG_S:
            self._say()

    def close(self) -> None:
        """See Progress."""
        self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        shown = "".join(f" {name}={value:.5g}" for name, value in self._metrics.items())
        logger.info("progress=%d total=%d%s work=%s", self._done, self._total, shown, self._description)


class TerminalProgress:
    """A tqdm bar on standard error."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, description: str, total: int) -> None:
        """See Progress."""
        self.close()
        # Metaflow forwards a task's output by the line: without a terminal a bar once in a while is enough.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(
            total=total, desc=description, file=sys.stderr, mininterval=interval, maxinterval=interval
        )

    def update(self, done: int, **metrics: float) -> None:
        """See Progress."""
        if self._bar is None:
            return
        if metrics:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()}, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """See Progress."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
