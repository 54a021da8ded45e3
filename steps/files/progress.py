"""Ways to show how far a piece of work has come."""

import sys
from typing import Any, Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Shows how far a piece of work has come."""

    def start(self, description: str, total: int) -> None:
        """Begin a piece of work of `total` units."""

    def update(self, done: int, **metrics: float) -> None:
        """`done` units are finished; `metrics` are shown beside them."""

    def close(self) -> None:
        """The piece of work is finished."""


class NullProgress:
    """Shows nothing."""

    def start(self, description: str, total: int) -> None:
        """See Progress."""

    def update(self, done: int, **metrics: float) -> None:
        """See Progress."""

    def close(self) -> None:
        """See Progress."""


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
