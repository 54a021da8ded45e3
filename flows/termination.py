"""How a run ends when it is asked to: its tasks first, with their checkpoints, then the runner.

`docker stop`, `kill <pid>` and many schedulers signal the process that they have started, which is Metaflow's runner. It
has no handler for SIGTERM and SIGHUP: it would die at once, and its tasks would lose whoever reads what they print and
takes their results. At Ctrl-C it kills tasks after 5 s.
"""

import atexit
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

from steps.training.interruption import catch_stop_signals

_LOOK_S = 0.1


def end_tasks_first(arguments: Sequence[str]) -> None:
    """Set this process's signal handlers, if these are the arguments of a runner: those of `run` or `resume`."""
    if "run" in arguments or "resume" in arguments:
        catch_stop_signals(_stop)


def _stop(number: int, _: Any) -> None:
    """The handler: have every task end and wait for it, then end the runner the way Ctrl-C does.

    Metaflow must not go on meanwhile: it would retry a task that has stopped, start the next one after one that has
    finished, and kill the others 5 s after the first. Waiting has no limit of its own: a task ends within
    `compute.sigterm_grace_s`, and whoever sent the signal has a limit (Docker's is 10 s).
    """
    catch_stop_signals(_stop_again)
    name = signal.Signals(number).name
    tasks = psutil.Process().children()
    if tasks:
        _say(f"{name}: waiting for the running tasks and their checkpoints; Ctrl-C ends them without.")
        atexit.register(_say, f"The run was stopped by {name}; `resume` goes on from the last checkpoints.")
    for task in tasks:
        with suppress(psutil.NoSuchProcess):
            task.send_signal(signal.SIGTERM)
    while any(map(_works, tasks)):
        time.sleep(_LOOK_S)
    raise KeyboardInterrupt


def _stop_again(number: int, _: Any) -> None:
    """Some send a signal twice, or SIGHUP after SIGTERM; only a person who presses Ctrl-C again is in a hurry."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt


def _works(task: psutil.Process) -> bool:
    """False once it has ended. What psutil waits for it takes away, and Metaflow would not learn the exit status."""
    try:
        return bool(task.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _say(text: str) -> None:
    """Print without Python's buffers, which the handler may have interrupted; the terminal may be gone."""
    with suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
