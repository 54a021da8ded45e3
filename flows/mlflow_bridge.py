"""A bridge to MLflow behind the progress interface: one MLflow run a task, with the metrics that the card shows.

Off unless SNAPFUSION_TRACK=mlflow; where it tracks is MLflow's own matter (MLFLOW_TRACKING_URI). Tracking never fails a
run: a server that does not answer is said once, and left.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from steps.files.progress import Progress

logger = logging.getLogger(__name__)
VARIABLE = "SNAPFUSION_TRACK"
EXPERIMENT = "snapfusion"
_EVERY = 10  # updates: a request each


def tracker(run: str, task: str) -> Progress | None:
    """What tracks a task (`student_8`, `evaluation base_50`) of a run; None where nobody asked, or MLflow is missing."""
    if os.environ.get(VARIABLE, "") != "mlflow":
        return None
    try:
        mlflow = import_module("mlflow")  # the user's own, no dependency of ours
    except ImportError:
        logger.warning("%s=mlflow, but mlflow is not installed: pip install mlflow", VARIABLE)
        return None
    return MlflowProgress(mlflow.MlflowClient(), run, task)


class MlflowProgress:
    """See steps.files.progress.Progress."""

    def __init__(self, client: Any, run: str, task: str) -> None:
        self._client, self._tags = client, {"metaflow_run": run, "task": task}
        self._name, self._id, self._updates = f"{run} {task}", "", 0
        self._last: tuple[int, dict[str, float]] = (0, {})

    def start(self, description: str, total: int) -> None:
        """Begin an MLflow run."""
        self._id, self._updates, self._last = "", 0, (0, {})
        self._safely(lambda: self._begin({**self._tags, "description": description, "total": str(total)}))

    def update(self, done: int, **metrics: float) -> None:
        """Log metrics, once in a while."""
        self._last = (done, metrics or self._last[1])
        if metrics and self._updates % _EVERY == 0:
            self._safely(self._log)
        self._updates += 1

    def close(self) -> None:
        """Log the last metrics and end the MLflow run."""
        self._safely(self._log)
        self._safely(lambda: self._client.set_terminated(self._id))

    def _begin(self, tags: dict[str, str]) -> None:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        self._id = self._client.create_run(experiment, tags=tags, run_name=self._name).info.run_id

    def _log(self) -> None:
        done, metrics = self._last
        for name, value in metrics.items():
            self._client.log_metric(self._id, name, value, step=done)

    def _safely(self, work: Callable[[], None]) -> None:
        """Do it, unless tracking has failed before. MLflow raises what its transport raises, too."""
        if self._client is None:
            return
        try:
            work()
        except Exception as error:
            logger.warning("MLflow does not track this task any more: %s", error)
            self._client = None
