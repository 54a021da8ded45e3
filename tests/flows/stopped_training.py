"""A training of a second and the flow around it, to be stopped by signals. Used and run by test_termination.py."""

# ruff: noqa: E402 - as in the flow itself
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from artifacts_schema.stage_configs import TrainingConfig
from steps.files.progress import Progress, TerminalProgress
from steps.training.batch import Batch
from steps.training.loop import train
from steps.training.randomness import keyed_normal

CONFIG = TrainingConfig(iterations=6, accumulation=4, batch_size=4, log_interval=2, learning_rate=3e-2)
STOPPED_AT = 3  # iterations that are whole when the training says that it may be stopped
_LONG_S = 6.0  # Metaflow, when it is interrupted, kills tasks after 5 s


def train_toy(folder: Path, progress: Progress, *, waits: bool) -> dict[str, Tensor]:
    """Weights after the training. With `waits` a micro-batch in the middle of an iteration says so and takes long."""
    torch.manual_seed(0)
    told = folder / "may_be_stopped"

    def loss(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if waits and (batch.iteration, batch.micro) == (STOPPED_AT, 1):
            told.touch()
            time.sleep(_LONG_S)
        x = keyed_normal((4,), seed=batch.seed, name="x", iteration=batch.iteration, indices=batch.indices)
        return {"loss": ((net(x) - x.sum(1, keepdim=True)) ** 2).mean()}

    outcome = train(
        nn.Linear(4, 1), loss, training=CONFIG, samples=13, seed=5, folder=folder / "checkpoints", progress=progress
    )  # fmt: skip
    return dict(outcome.model.state_dict())


if __name__ == "__main__":
    from flows.environment import prepare

    prepare()

    from metaflow import FlowSpec, step

    class StoppedTraining(FlowSpec):
        """A step that trains, or one that only works, until a signal comes; resumed, it comes to its end."""

        @step
        def start(self) -> None:
            """Work."""
            folder = Path(os.environ["TOY_FOLDER"])
            if os.environ.get("TOY_WORKS"):
                (folder / "may_be_stopped").touch()
                time.sleep(600)
            weights = train_toy(folder, TerminalProgress(), waits=not (folder / "checkpoints").exists())
            save_file(weights, folder / "weights.safetensors")
            self.next(self.end)

        @step
        def end(self) -> None:
            """Nothing."""

    StoppedTraining()
