"""The other ranks of a training: rank 0 is the process that trains, and starts one more for every further GPU.

The others get their work by a pipe and keep nothing that is not in rank 0, too. So a training ends by ending them, and what
becomes of any of them is said by rank 0. They import what the work needs and nothing of the flow.
"""

import json
import logging
import os
import pickle  # nosec B403 - written only
import signal
import subprocess  # nosec B404
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from steps.files import errors
from steps.files.errors import ConfigError, Interrupted, RankError, SnapFusionError
from steps.training import rank as rank_program
from steps.training.group import TIMEOUT_S, joined
from steps.training.interruption import STOP_SIGNALS
from steps.training.stepping import Work

logger = logging.getLogger(__name__)
_END_S = 30.0  # from the end of one rank to that of the others, before they are ended
_LOOK_S = 0.1
_GOES_ON = "the training goes on from its last checkpoint when it is started again"


@contextmanager
def ranks(work: Work, processes: int, folder: Path, stop: threading.Event) -> Iterator[None]:
    """`processes` ranks work on `work` for as long as the block lasts, in which this process is rank 0.

    Raises ConfigError for a batch that they cannot share and for too few GPUs; the error of a rank in its own words, and
    RankError for one that was killed.
    """
    if processes == 1:
        yield
        return
    if problem := work.part.training.why_not_shared_by(processes):
        raise ConfigError(problem)
    gpus = _gpus(processes) if work.device.type == "cuda" else [""] * processes
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    with TemporaryDirectory(dir=folder, prefix=".ranks-") as place:
        meeting = Path(place) / "meeting"
        others = _Others(work, meeting, gpus, max(1, threads // processes))
        try:
            others.begin(stop)
            torch.set_num_threads(max(1, threads // processes))
            with joined(0, processes, work.device, meeting):
                yield
            others.wait()
        except RuntimeError as error:  # what a collective raises when another rank is gone
            if failure := others.failure():
                raise failure from error
            if "timed out" in str(error).lower():
                raise RankError(f"a rank did not answer within {TIMEOUT_S:.0f} s; {_GOES_ON}") from error
            raise
        finally:
            torch.set_num_threads(threads)
            others.end()


def _gpus(processes: int) -> list[str]:
    """The GPU of every rank, as CUDA_VISIBLE_DEVICES names it. Raises ConfigError when there are too few."""
    count = torch.cuda.device_count()
    if count < processes:
        raise ConfigError(f"compute.processes is {processes}, but there are {count} GPUs; set at most that")
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(count)]


class _Others:
    """Ranks 1 and above, each watched by a thread."""

    def __init__(self, work: Work, meeting: Path, gpus: list[str], threads: int) -> None:
        self._work, world = work, len(gpus)
        self._ready: set[int] = set()
        self._said: dict[int, dict[str, str]] = {}
        self._ended: dict[int, int] = {}
        self._closing = False
        search = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": str(threads)}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for number in range(1, world):
            own = {"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus[number] else {}
            arguments = [str(value) for value in (number, world, meeting, os.getpid(), threads)]
            self._processes[number] = _without_signals(
                [sys.executable, "-m", rank_program.__name__, *arguments], environment | own
            )
        for number in self._processes:
            threading.Thread(target=self._watch, args=(number,), daemon=True, name=f"rank {number}").start()

    def begin(self, stop: threading.Event) -> None:
        """Wait until all have their work. Raises their errors, and Interrupted once `stop` is set."""
        while len(self._ready) < len(self._processes):
            if (self._said or self._ended) and (failure := self.failure()):
                raise failure
            if stop.is_set():
                raise Interrupted("stopped before the ranks had begun; the last checkpoint continues")
            time.sleep(_LOOK_S)

    def wait(self) -> None:
        """Until all have ended by themselves."""
        until = time.monotonic() + _END_S
        while len(self._ended) < len(self._processes) and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def failure(self) -> SnapFusionError | None:
        """Why a rank has ended before the training; waits a little, as its end may be seen elsewhere first."""
        until = time.monotonic() + _END_S / 6
        while not (self._said or any(self._ended.values())) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        killed = next((item for item in sorted(self._ended.items()) if item[1] < 0), None)
        if killed:  # what the others say then is only that they lost it
            return RankError(self._how(*killed))
        for said in self._said.values():
            kind: Any = getattr(errors, said["error"], None)
            if kind is not None and issubclass(kind, SnapFusionError):
                return kind(said["message"])  # type: ignore[no-any-return]
        for number, said in sorted(self._said.items()):
            return RankError(f"rank {number} failed: {said['error']}: {said['message']}")
        for number, code in sorted(self._ended.items()):
            if code:
                return RankError(self._how(number, code))
        return None

    def end(self) -> None:
        """End what still works: nobody waits for it."""
        self._closing = True
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]

    def _how(self, number: int, code: int) -> str:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        world = len(self._processes) + 1
        return f"rank {number} of {world} {how}; {_GOES_ON}"

    def _watch(self, number: int) -> None:
        process = self._processes[number]
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        try:
            with suppress(BrokenPipeError):  # it has ended
                pickle.dump(self._work, process.stdin)
                process.stdin.flush()
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            self._said[number] = {"error": type(error).__name__, "message": str(error)}
        with suppress(ValueError):  # closed by `end`
            for line in process.stdout:
                said = json.loads(line)
                if "error" in said:
                    self._said[number] = said
                else:
                    self._ready.add(number)
        code = process.wait()
        self._ended[number] = code
        if code and not self._closing and self._work.device.type == "cuda":
            time.sleep(_END_S)
            if not self._closing:  # nccl may wait for the one that is gone, and no exception ends that
                logger.error("%s", self._how(number, code))
                os._exit(1)


def _without_signals(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A process all threads of which leave the signals of `STOP_SIGNALS` to the one that waits for them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
