"""A training of two nodes: as on one machine, and never waiting for a node that is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from steps.files.errors import RankError, SnapFusionError
from steps.training import nodes as of_leader
from steps.training.batch import Batch
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.loop import train
from steps.training.nodes import Team, client, leading
from steps.training.outcome import TrainingOutcome
from tests.conftest import free_port
from tests.steps.training.test_ranks import TRAINING, Regression, Skipping, apart
from tests.steps.training.test_ranks import run as run_here

FOLLOWER = """
import sys, torch
from steps.training.following import follow
from steps.training.nodes import Team
host, port, node, nodes, processes = sys.argv[1:]
follow(host, int(port), int(node), int(nodes), team=Team(int(processes)), device=torch.device("cpu"))
"""


@contextmanager
def another_node(processes: int) -> "Iterator[tuple[int, subprocess.Popen[str]]]":
    """The port to lead from, and node 1 of two."""
    port = free_port()
    command = [sys.executable, "-c", FOLLOWER, "127.0.0.1", str(port), "1", "2", str(processes)]
    node = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield port, node
    finally:
        node.kill()
        node.communicate()


def run(folder: Path, port: int, processes: int = 1, loss: Regression | None = None) -> list[TrainingOutcome]:
    """Two trainings with one node more, in which loss may do something to rank 1."""
    training = TRAINING.model_copy(update={"schedule": "constant"})
    found = []
    with leading("127.0.0.1", port, 2) as nodes:
        for place in ("first", "second"):
            found.append(
                train(
                    Skipping(),
                    loss or Regression(),
                    training=training,
                    samples=13,
                    seed=5,
                    folder=folder / place,
                    processes=Team(processes, nodes=nodes),
                )  # fmt: skip
            )
    return found


@pytest.mark.long
def test_two_nodes_train_as_two_processes_do(tmp_path: Path) -> None:
    here = run_here(tmp_path / "here", 2)
    with another_node(1) as (port, node):
        found = run(tmp_path, port)
        assert node.wait(30) == 0
    assert [apart(here, outcome) for outcome in found] == [0, 0]
    assert [outcome.curve for outcome in found] == [here.curve] * 2


@pytest.mark.long
def test_nodes_of_several_processes_train_as_one_process_does(tmp_path: Path) -> None:
    alone = run_here(tmp_path / "alone", 1)
    with another_node(2) as (port, node):
        found = run(tmp_path, port, 2)
        assert node.wait(30) == 0
    assert max(apart(alone, outcome) for outcome in found) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "said"),
    [("SIGKILL", "rank 1 of 2 was killed by SIGKILL"), ("nan", "loss is nan at iteration 3")],
)
def test_a_failing_rank_of_another_node_ends_both_nodes_in_its_words(
    tmp_path: Path, what: str, said: str
) -> None:
    with another_node(1) as (port, node):
        with pytest.raises(SnapFusionError, match=said):
            run(tmp_path, port, loss=Regression(3, what))
        assert said in node.communicate(timeout=30)[1]
    checkpoint = CheckpointFolder(tmp_path / "first").load_latest()
    assert checkpoint is not None and checkpoint.iteration >= 3
    assert apart(run_here(tmp_path / "alone", 1), run_here(tmp_path / "first", 2)) < 1e-5


class Killing(Regression):
    """Rank 1 kills the node that started it, as a machine that is taken away, and ends with it."""

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """As a Regression."""
        if (batch.iteration, batch.micro) == (3, 0) and os.environ.get("RANK") == "1":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)  # its parent is another process now: nothing more may be killed
        return super().__call__(model, batch)


@pytest.mark.long
def test_a_node_that_is_gone_is_named(tmp_path: Path) -> None:
    with (
        another_node(1) as (port, _),
        pytest.raises(RankError, match="node 1 of 2 is gone; the training goes on"),
    ):
        run(tmp_path, port, loss=Killing())


def test_a_silent_node_ends_a_training_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(of_leader.os, "_exit", ended.append)
    monkeypatch.setattr(of_leader, "BEAT_S", 0.05)
    monkeypatch.setattr(of_leader, "_SILENT_S", 0.2)
    port = free_port()

    def node() -> None:
        store = client("127.0.0.1", port, 30)
        store.add("beat/1", 1)  # and never again
        for number in (1, 2):
            at = int(store.get(f"{number}/work"))
            with socket.create_connection(("127.0.0.1", at)) as connection, connection.makefile("rb") as work:
                work.read()

    threading.Thread(target=node, daemon=True).start()
    work: Any = {}
    with leading("127.0.0.1", port, 2) as leader:
        with leader.training(work):
            pass
        time.sleep(1)
        assert not ended
        with leader.training(work):
            until = time.monotonic() + 30
            while not ended and time.monotonic() < until:
                time.sleep(0.05)
    assert ended[0] == 1
