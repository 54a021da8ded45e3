"""Timing parts inside the running network.

A block timed by itself, call after call, finds its weights and inputs in the cache and nothing else to do;
inside the network it does not. Timed in place, between two hooks of the same forward pass, the parts see what
they see in use, every repeat covers all of them, and a disturbance of the machine strikes the parts and the
whole alike.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from steps.latency.parts import Part


class Clock(Protocol):
    """Marks moments and tells the milliseconds between two of them."""

    def mark(self) -> Any:
        """The present moment."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds from one mark to another; call `finish` first."""

    def finish(self) -> None:
        """Wait until everything marked has happened."""


class CpuClock:
    """Wall time of the calling thread."""

    def mark(self) -> float:
        """See Clock."""
        return time.perf_counter()

    def elapsed_ms(self, start: float, end: float) -> float:
        """See Clock."""
        return (end - start) * 1e3

    def finish(self) -> None:
        """See Clock."""


class CudaClock:
    """Events on the current stream: the GPU's own time, which runs apart from the program's."""

    def mark(self) -> Any:
        """See Clock."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See Clock."""
        return float(start.elapsed_time(end))

    def finish(self) -> None:
        """See Clock."""
        torch.cuda.synchronize()


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


@contextmanager
def recorded_marks(parts: Sequence[Part], clock: Clock) -> Iterator[dict[str, list[tuple[Any, Any]]]]:
    """While active, collects (start, end) marks of every part: one pair per module and call."""
    marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    started: list[Any] = []
    handles = []

    def begin(*_: Any) -> None:
        started.append(clock.mark())

    def end_of(name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            marks[name].append((started.pop(), clock.mark()))

        return end

    for part in parts:
        for module in part.modules:
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end_of(part.id)))
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def time_parts(
    parts: Sequence[Part], call: Callable[[], Any], clock: Clock
) -> tuple[dict[str, float], float]:
    """Milliseconds of every part (0 for one that did not run) and of the whole, all of one call."""
    with recorded_marks(parts, clock) as marks:
        whole = time_call(call, clock)
    return {part.id: sum(clock.elapsed_ms(*pair) for pair in marks[part.id]) for part in parts}, whole


def time_call(call: Callable[[], Any], clock: Clock) -> float:
    """Milliseconds of one call."""
    clock.finish()
    start = clock.mark()
    call()
    end = clock.mark()
    clock.finish()
    return clock.elapsed_ms(start, end)


def interleaved(
    calls: dict[str, Callable[[], Any]], *, clock: Clock, warmup: int, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of every call, `repeats` times each, taken in turn: a slow minute slows all of them."""
    result: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(warmup + repeats):
        for name, call in calls.items():
            elapsed = time_call(call, clock)
            if repeat >= warmup:
                result[name].append(elapsed)
    return result


@contextmanager
def quiet(*models: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode; the models' own modes come back afterwards."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
