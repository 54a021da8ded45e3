"""Training over several nodes, on the node that leads: rank 0 is its stage, and the other nodes start ranks when it trains.

The nodes meet at a TCPStore, which this node serves. Keys there:

    beat/<node>       counts the seconds of a node that lives
    failed/<node>     why its ranks ended, an error as JSON
    stop              a node was told to stop; the one that leads stops the training
    trainings         how many have begun; of number n: n/work, where its work is had; n/ready; n/over, with a word
    end               the step is over, with a word; left counts the nodes that have read it

docs/adr/0042-nodes.md
"""

import json
import logging
import os
import pickle  # nosec B403 - written only
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from artifacts_schema.run_configs import ComputeConfig
from steps.files import errors
from steps.files.errors import RankError, SnapFusionError
from steps.training.stepping import Work

logger = logging.getLogger(__name__)
BEAT_S = 1.0
DONE, CUT = "done", "cut"
GOES_ON = "the training goes on from its last checkpoint when it is started again"
_SILENT_S = 60.0  # a node that is silent for so long is taken for lost: no connection was closed
_COME_S = 600.0  # until all nodes have come, and until all have a training's work
_LOOK_S = 0.1


class Leader:
    """The other nodes of a step, to the node that leads it. Made by `leading`."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self.count = count
        self._host, self._port = host, port
        server = socket.create_server((host, port))  # of this address alone; torch would listen at all
        wait = timedelta(seconds=_COME_S)
        self._store = TCPStore(
            host, port, None, True, wait, wait_for_workers=False, master_listen_fd=server.detach()
        )
        self._watched = client(host, port, _COME_S)  # a client serves one thread
        self._trainings = 0
        self._trains = False
        self._beats = dict.fromkeys(range(1, count), (0, time.monotonic()))
        self._stop = threading.Event()

    def gather(self) -> None:
        """Wait until every node has come. Raises RankError naming those that have not."""
        until = time.monotonic() + _COME_S
        while missing := [node for node in self._beats if not self._store.check([f"beat/{node}"])]:
            if failure := self._said():
                raise failure
            if time.monotonic() > until:
                names = ", ".join(f"node {node}" for node in missing)
                raise RankError(
                    f"{names} of {self.count} did not come within {_COME_S:.0f} s; see what they print"
                )
            time.sleep(_LOOK_S)
        threading.Thread(target=self._watch, daemon=True, name="nodes").start()

    @contextmanager
    def training(self, work: Work) -> Iterator[str]:
        """Every other node starts its ranks for `work`, for as long as the block lasts; gives where all meet.

        Raises RankError for work that cannot be sent.
        """
        self._trainings += 1
        number, word = self._trainings, CUT
        self._trains = True
        try:
            self._send(work, number)
            yield f"tcp://{self._host}:{self._port}/{number}/ranks"
            word = DONE
        finally:
            self._trains = False
            self._store.set(f"{number}/over", word)

    def ready(self) -> bool:
        """True when the ranks of every other node are. Raises why one of them cannot be."""
        if failure := self._said():
            raise failure
        return int(self._store.add(f"{self._trainings}/ready", 0)) == self.count - 1

    def failure(self) -> SnapFusionError | None:
        """Why ranks of another node have ended; waits a little, as that may be seen elsewhere first."""
        began = time.monotonic()
        while time.monotonic() < began + 5 * BEAT_S:
            if failure := self._said():
                return failure
            time.sleep(_LOOK_S)
        for node, (_, seen) in self._beats.items():
            if seen < began:
                return RankError(f"node {node} of {self.count} is gone; {GOES_ON}")
        return None

    def end(self, word: str) -> None:
        """Let the other nodes go."""
        self._store.set("end", word)
        until = time.monotonic() + 5 * BEAT_S
        while self._store.add("left", 0) < self.count - 1 and time.monotonic() < until:
            time.sleep(_LOOK_S)  # the store ends with this process
        self._stop.set()

    def _send(self, work: Work, number: int) -> None:
        with ExitStack() as stack:
            server = stack.enter_context(socket.create_server((self._host, 0)))
            server.settimeout(_COME_S)
            self._store.set(f"{number}/work", str(server.getsockname()[1]))
            self._store.add("trainings", 1)
            try:
                connections = [stack.enter_context(server.accept()[0]) for _ in self._beats]
                pickle.dump(work, _Several(connections))
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                raise RankError(f"the work cannot be sent to other nodes: {error}") from error
            except OSError as error:
                raise self.failure() or RankError(
                    f"the work could not be sent to other nodes: {error}"
                ) from error

    def _said(self) -> SnapFusionError | None:
        for node in self._beats:
            if self._store.check([f"failed/{node}"]):
                said = json.loads(self._store.get(f"failed/{node}"))
                return as_raised(said) or RankError(f"node {node}: {said['error']}: {said['message']}")
        return None

    def _watch(self) -> None:
        """Pass on a stop, and end this process where a training waits for a node in vain and no exception ends that."""
        failed_at: float | None = None
        with suppress(RuntimeError):
            while not self._stop.wait(BEAT_S):
                now = time.monotonic()
                for node, (beat, _) in self._beats.items():
                    if (heard := self._watched.add(f"beat/{node}", 0)) != beat:
                        self._beats[node] = (heard, now)
                    if failed_at is None and self._watched.check([f"failed/{node}"]):
                        failed_at = now
                if self._watched.check(["stop"]):
                    self._watched.delete_key("stop")
                    os.kill(os.getpid(), signal.SIGTERM)
                heard_at = min(seen for _, seen in self._beats.values())
                if self._trains and now - min(heard_at, now if failed_at is None else failed_at) > _SILENT_S:
                    failure = self.failure() or f"a node of {self.count} is not heard of; {GOES_ON}"
                    logger.error("%s", failure)
                    os._exit(1)


class _Several:
    """What is written goes to every connection."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections = connections

    def write(self, data: bytes) -> None:
        for connection in self._connections:
            connection.sendall(data)


@dataclass(frozen=True)
class Team:
    """Who trains together: `processes` ranks on every node. A rank that is silent for `timeout_s` is given up.

    A held-out check, in which rank 0 works alone, takes minutes. A rank that ends is noticed at once and without this.
    """

    processes: int = 1
    timeout_s: float = ComputeConfig().rank_timeout_s
    nodes: Leader | None = None

    @property
    def world(self) -> int:
        """Ranks of all nodes."""
        return self.processes * (self.nodes.count if self.nodes else 1)


@contextmanager
def leading(host: str, port: int, count: int) -> Iterator[Leader]:
    """This process leads `count` nodes, which meet at `host`, an address of this machine. Raises RankError."""
    leader, word = Leader(host, port, count), CUT
    try:
        leader.gather()
        yield leader
        word = DONE
    finally:
        leader.end(word)


def client(host: str, port: int, timeout_s: float) -> Any:
    """A connection to the store of the node that leads."""
    return TCPStore(host, port, None, False, timedelta(seconds=timeout_s))


def as_raised(said: Mapping[str, str]) -> SnapFusionError | None:
    """An error of another process as its own class, if it is one of the pipeline's."""
    kind: Any = getattr(errors, said["error"], None)
    if isinstance(kind, type) and issubclass(kind, SnapFusionError):
        return kind(said["message"])
    return None
