"""What a task's card shows while the task works: bar, speed, memory, time left, cost, loss curve, pictures."""

import logging
import sys
import time
from contextlib import suppress
from typing import Any, Protocol

import psutil
from metaflow.cards import Image, ProgressBar, Table, VegaChart

from flows.cards import render
from flows.logs import wants_json
from steps.files.progress import LogProgress, Progress, TerminalProgress
from steps.latency.estimates import format_seconds
from steps.report.content import Text

logger = logging.getLogger(__name__)
_REFRESH_S = 3.0
_MOST_POINTS = 200  # of a curve: beyond, every second one goes
_MOST_ROWS = 5  # of pictures: the start and the newest
_PICTURES_SHARE = 0.05  # of the time that pictures may take
_GIB = float(1 << 30)


class Painter(Protocol):
    """Draws with a model that is in training."""

    def draw(self, unet: Any) -> bytes:
        """PNG of a row of pictures."""

    def captions(self) -> list[str]:
        """What the pictures are drawn for."""


class CardProgress:
    """Progress in the terminal (or the log) and live in the task's card; `painter` adds pictures of trainings."""

    def __init__(self, card: Any, *, price_per_hour: float = 0.0, more: Progress | None = None) -> None:
        self.painter: Painter | None = None
        self._shown: list[Progress] = [LogProgress() if wants_json() else TerminalProgress()]
        self._shown += [more] if more else []
        self._card, self._price = card, price_per_hour
        self._bar: Any = None
        self._curve: _Curve | None = None
        self._pictures: list[list[Any]] = []
        self._began, self._drawing_s, self._refreshed = time.monotonic(), 0.0, 0.0

    def start(self, description: str, total: int) -> None:
        """See steps.files.progress.Progress."""
        for item in self._shown:
            item.start(description, total)
        self._total, self._first, self._since = total, 0, time.monotonic()
        self._updates, self._done, self._metrics = 0, 0, dict[str, float]()
        self._curve, self._pictures = None, []
        self._bar = ProgressBar(max=max(total, 1), label=description)
        self._card.append(self._bar)

    def update(self, done: int, **metrics: float) -> None:
        """See steps.files.progress.Progress."""
        for item in self._shown:
            item.update(done, **metrics)
        if self._bar is None:
            return
        if self._updates == 0:  # a training that goes on was not that fast
            self._first, self._since = done, time.monotonic()
        self._updates += 1
        self._done, self._metrics = done, self._metrics | metrics
        if "loss" in metrics:
            self._curve = self._curve or _Curve(self._card)
            self._curve.add(done, metrics["loss"])
        # Each one, and not only those that are sent: what the card shows when the task has ended is the last.
        self._bar.update(done)
        if time.monotonic() - self._refreshed >= _REFRESH_S:
            self._refresh()

    def close(self) -> None:
        """See steps.files.progress.Progress."""
        for item in self._shown:
            item.close()
        if self._bar is not None:
            self._refresh()
        self._bar = None

    def look(self, iteration: int, model: Any) -> None:
        """See steps.files.progress.Watcher: pictures of the state, as long as they take a small share of the time."""
        began = time.monotonic()
        if self.painter is None or self._drawing_s > _PICTURES_SHARE * (began - self._began):
            return
        try:
            drawn = self.painter.draw(model)
        except RuntimeError as error:  # such as no memory beside the training, which pictures must not end
            logger.warning("no pictures of this training: %s", error)
            self.painter = None
            return
        self._pictures.append([str(iteration), Image(drawn)])
        if len(self._pictures) == 1:  # later rows join this table
            self._card.append(Table(self._pictures, headers=["iteration", "pictures"]))
            render(self._card, [Text("Pictures for: " + "; ".join(self.painter.captions()))])
        del self._pictures[1 : 1 - _MOST_ROWS]
        self._drawing_s += time.monotonic() - began
        self._card.refresh(force=True)

    def _refresh(self) -> None:
        self._refreshed = time.monotonic()
        self._bar.update(self._done, metadata=", ".join(self._words()) or None)
        if self._curve is not None:
            self._curve.show()
        self._card.refresh()

    def _words(self) -> list[str]:
        """The newest numbers, speed, time left, memory, GPU, cost."""
        shown = [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        now = time.monotonic()
        if self._done > self._first and now > self._since:
            speed = (self._done - self._first) / (now - self._since)
            shown.append(f"{speed:.3g}/s")
            if self._done < self._total:
                shown.append(f"{format_seconds((self._total - self._done) / speed)} left")
        shown.append(f"{psutil.Process().memory_info().rss / _GIB:.2f} GiB")
        shown += gpu_words()
        if self._price:
            shown.append(f"cost {(now - self._began) / 3600 * self._price:.2f}")
        return shown


def gpu_words() -> list[str]:
    """Memory and use of this process's GPU; nothing without one. Imports no torch that is not there yet."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    free, total = torch.cuda.mem_get_info()
    shown = [f"GPU {(total - free) / _GIB:.1f} of {total / _GIB:.1f} GiB"]
    with suppress(ModuleNotFoundError, RuntimeError, OSError):  # needs nvidia-ml-py
        shown.append(f"GPU use {torch.cuda.utilization()} %")
    return shown


class _Curve:
    """Loss over iterations; thinned out when it gets long."""

    def __init__(self, card: Any) -> None:
        self._points: list[dict[str, float]] = []
        self._every = 1
        self._added = 0
        self._chart = VegaChart(self._spec())
        card.append(self._chart)

    def add(self, iteration: int, loss: float) -> None:
        """One value."""
        if self._added % self._every == 0:
            self._points.append({"iteration": iteration, "loss": loss})
        self._added += 1
        if len(self._points) > _MOST_POINTS:
            self._points, self._every = self._points[::2], 2 * self._every

    def show(self) -> None:
        """Put what there is on the card."""
        self._chart.update(self._spec())

    def _spec(self) -> dict[str, Any]:
        axis = {"type": "quantitative"}
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "height": 140,
            "data": {"values": list(self._points)},
            "mark": "line",
            "encoding": {
                "x": {"field": "iteration", **axis},
                "y": {"field": "loss", "scale": {"zero": False}, **axis},
            },
        }
