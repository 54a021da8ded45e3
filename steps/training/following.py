"""Training over several nodes, on a node that does not lead: starts its ranks whenever the one that leads trains."""

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import torch

from steps.files.errors import RankError, SnapFusionError
from steps.training.interruption import catch_stop_signals
from steps.training.nodes import BEAT_S, DONE, GOES_ON, Team, client
from steps.training.ranks import Others, gpus_of

logger = logging.getLogger(__name__)
_LOOK_S = 0.1
_COME_S = 600.0  # until the node that leads has come


def follow(host: str, port: int, node: int, nodes: int, *, team: Team, device: torch.device) -> None:
    """Work as node `node` of `nodes` until the one that leads, at `host`, has ended.

    `team` are the ranks of this node. Raises the error of one of them in its own words, and RankError when the node that
    leads is gone or did not come to its end.
    """
    try:
        store = client(host, port, _COME_S)
        threading.Thread(target=_beat, args=(client(host, port, _COME_S), node), daemon=True).start()
        try:
            _follow(store, (host, port), node, nodes, team=team, device=device)
        except SnapFusionError as error:
            said = {"error": type(error).__name__, "message": str(error)}
            store.set(f"failed/{node}", json.dumps(said))
            raise
        word = store.get("end").decode()
        store.add("left", 1)
        if word != DONE:
            raise RankError(f"the node that leads, at {host}, did not come to its end; {GOES_ON}")
    except torch.distributed.DistError as error:
        raise RankError(f"the node that leads, at {host}, is gone ({_line(error)}); {GOES_ON}") from error


def _follow(
    store: Any, place: tuple[str, int], node: int, nodes: int, *, team: Team, device: torch.device
) -> None:
    gpus = gpus_of(team.processes, device)
    stopped = threading.Event()
    catch_stop_signals(lambda *_: stopped.set())
    begun = 0
    while not store.check(["end"]):
        if stopped.is_set():
            store.set("stop", str(node))
            stopped.clear()
        if store.add("trainings", 0) > begun:
            begun += 1
            _Training(store, begun, node, nodes, stopped).run(place, team, gpus)
        time.sleep(_LOOK_S)


def _beat(store: Any, node: int) -> None:
    with suppress(RuntimeError):  # the node that leads is gone, and with it the store
        while True:
            store.add(f"beat/{node}", 1)
            time.sleep(BEAT_S)


class _Training:
    """One training of the node that leads, on this node."""

    def __init__(self, store: Any, number: int, node: int, nodes: int, stopped: threading.Event) -> None:
        self._store, self._number, self._node, self._nodes = store, number, node, nodes
        self._stopped = stopped

    def run(self, place: tuple[str, int], team: Team, gpus: list[str]) -> None:
        """Until it is over. Raises the error of a rank, which the node that leads learns, too."""
        host, port = place
        meeting = f"tcp://{host}:{port}/{self._number}/ranks"
        first = self._node * team.processes
        work = self._work(host)
        others = Others(
            range(first, first + team.processes), team.processes * self._nodes, gpus, meeting=meeting, work=work,
            timeout_s=team.timeout_s, threads=max(1, torch.get_num_threads() // team.processes),
        )  # fmt: skip
        try:
            self._watch(others)
        finally:
            others.end()

    def _work(self, host: str) -> bytes:
        port = int(self._store.get(f"{self._number}/work"))
        with socket.create_connection((host, port)) as connection, connection.makefile("rb") as stream:
            return stream.read()

    def _watch(self, others: Others) -> None:
        told = False
        over = f"{self._number}/over"
        while not self._store.check([over]):
            if others.failed and (failure := others.failure()):
                if self._store.check([over]):  # it was cut, and that is what its ranks noticed
                    return
                raise failure
            if others.are_ready and not told:
                self._store.add(f"{self._number}/ready", 1)
                told = True
            if self._stopped.is_set():
                self._store.set("stop", str(self._node))
                self._stopped.clear()
            time.sleep(_LOOK_S)
        if self._store.get(over).decode() == DONE:
            others.wait()


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
