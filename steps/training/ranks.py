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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from steps.files.errors import ConfigError, Interrupted, RankError, SnapFusionError
from steps.training import rank as rank_program
from steps.training.group import joined
from steps.training.interruption import STOP_SIGNALS
from steps.training.nodes import GOES_ON, Team, as_raised
from steps.training.stepping import Work

logger = logging.getLogger(__name__)
_END_S = 30.0  # from the end of one rank to that of the others, before they are ended
_LOOK_S = 0.1


@contextmanager
def ranks(work: Work, processes: int | Team, folder: Path, stop: threading.Event) -> Iterator[None]:
    """`processes` ranks work on `work` for as long as the block lasts, in which this process is rank 0.

    Raises ConfigError for a batch that they cannot share and for too few GPUs; the error of a rank in its own words, and
    RankError for one that was killed.
    """
    team = processes if isinstance(processes, Team) else Team(processes)
    if team.world == 1:
        yield
        return
    if problem := work.part.training.why_not_shared_by(team.world):
        raise ConfigError(problem)
    gpus = gpus_of(team.processes, work.device)
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    own = max(1, threads // team.processes)
    with TemporaryDirectory(dir=folder, prefix=".ranks-") as place, ExitStack() as stack:
        elsewhere = team.nodes.training(work) if team.nodes else nullcontext(str(Path(place) / "meeting"))
        meeting = stack.enter_context(elsewhere)
        others = Others(
            range(1, team.processes), team.world, gpus,
            meeting=meeting, work=work, timeout_s=team.timeout_s, threads=own,
        )  # fmt: skip
        try:
            others.begin(stop, also=team.nodes.ready if team.nodes else None)
            torch.set_num_threads(own)
            with joined(0, team.world, work.device, meeting, timeout_s=team.timeout_s):
                yield
            others.wait()
        except RuntimeError as error:  # what a collective raises when another rank is gone
            if failure := others.failure() or (team.nodes.failure() if team.nodes else None):
                raise failure from error
            if "timed out" in str(error).lower():
                raise RankError(f"a rank did not answer within {team.timeout_s:.0f} s; {GOES_ON}") from error
            raise
        finally:
            torch.set_num_threads(threads)
            others.end()


def gpus_of(processes: int, device: torch.device) -> list[str]:
    """The GPU of every rank of this machine, as CUDA_VISIBLE_DEVICES names it; none of a CPU. Raises ConfigError when there
    are too few.
    """
    if device.type != "cuda" or processes == 1:
        return [""] * processes
    count = torch.cuda.device_count()
    if count < processes:
        raise ConfigError(f"compute.processes is {processes}, but there are {count} GPUs; set at most that")
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(number) for number in range(count)])[:processes]


class Others:
    """Ranks that this process starts, each watched by a thread."""

    def __init__(
        self,
        numbers: range,
        world: int,
        gpus: list[str],
        *,
        meeting: str,
        work: Work | bytes,
        timeout_s: float,
        threads: int,
    ) -> None:
        """`numbers` are theirs of `world`; `gpus` those of this machine; `work` may be pickled already."""
        self._world, self._work = world, work
        self._on_gpus = any(gpus)
        self._ready: set[int] = set()
        self._said: dict[int, dict[str, str]] = {}
        self._ended: dict[int, int] = {}
        self._closing = False
        search = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": str(threads)}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for number, gpu in zip(numbers, gpus[-len(numbers) :] if numbers else (), strict=True):
            own = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            arguments = [str(value) for value in (number, world, meeting, os.getpid(), threads, timeout_s)]
            self._processes[number] = _without_signals(
                [sys.executable, "-m", rank_program.__name__, *arguments], environment | own
            )
        for number in self._processes:
            threading.Thread(target=self._watch, args=(number,), daemon=True, name=f"rank {number}").start()

    @property
    def are_ready(self) -> bool:
        """All have their work."""
        return len(self._ready) == len(self._processes)

    @property
    def failed(self) -> bool:
        """One of them has."""
        return bool(self._said or any(self._ended.values()))

    def begin(self, stop: threading.Event, also: Callable[[], bool] | None = None) -> None:
        """Wait until all are ready, and `also` says so. Raises their errors, and Interrupted once `stop` is set."""
        while not (self.are_ready and (also is None or also())):
            if self.failed and (failure := self.failure()):
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
            if (raised := as_raised(said)) is not None:
                return raised
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
        return f"rank {number} of {self._world} {how}; {GOES_ON}"

    def _watch(self, number: int) -> None:
        process = self._processes[number]
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        try:
            with suppress(BrokenPipeError):  # it has ended
                if isinstance(self._work, bytes):
                    process.stdin.write(self._work)
                else:
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
        if code and not self._closing and self._on_gpus:
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
