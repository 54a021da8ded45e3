"""The bridge to MLflow, which is not installed here: a client that keeps what it is told."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from flows.mlflow_bridge import VARIABLE, MlflowProgress, tracker


class Client:
    """The part of mlflow.MlflowClient that the bridge calls."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str, float, int]] = []
        self.ended: list[str] = []
        self.broken = False

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = "e1"
        return "e1"

    def create_run(self, experiment_id: str, *, tags: dict[str, str], run_name: str) -> Any:
        if self.broken:
            raise ConnectionError("refused")
        self.runs.append({"experiment": experiment_id, "name": run_name, **tags})
        return SimpleNamespace(info=SimpleNamespace(run_id=f"r{len(self.runs)}"))

    def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> None:
        self.metrics.append((run_id, key, value, step))

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


def train(progress: MlflowProgress, count: int = 25) -> None:
    progress.start("training", count)
    for done in range(1, count + 1):
        progress.update(done, loss=1.0 / done)
    progress.close()


def test_a_task_is_a_run_with_its_metrics_now_and_then_and_the_last() -> None:
    client = Client()
    progress = MlflowProgress(client, "17", "student_8")
    train(progress)
    train(progress)
    assert client.runs[0] == {
        "experiment": "e1",
        "name": "17 student_8",
        "metaflow_run": "17",
        "task": "student_8",
        "description": "training",
        "total": "25",
    }
    assert [(run, step) for run, _, _, step in client.metrics][:4] == [
        ("r1", 1),
        ("r1", 11),
        ("r1", 21),
        ("r1", 25),
    ]
    assert client.ended == ["r1", "r2"] and list(client.experiments) == ["snapfusion"]


def test_a_server_that_does_not_answer_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    client.broken = True
    train(MlflowProgress(client, "17", "student_8"))
    assert caplog.messages == ["MLflow does not track this task any more: refused"]
    assert client.metrics == client.ended == []


def test_only_who_asks_is_tracked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert tracker("17", "student_8") is None
    monkeypatch.setenv(VARIABLE, "mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert tracker("17", "student_8") is None and "not installed" in caplog.text
    module = ModuleType("mlflow")
    module.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    assert isinstance(tracker("17", "student_8"), MlflowProgress)
