"""What every stage is given besides its inputs: store, work folder, seed, device and a way to show progress."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from artifacts_schema.run_configs import ComputeConfig
from steps.files.errors import ConfigError, StoreError
from steps.files.progress import NullProgress, Progress
from steps.store.base import Mirror, Store
from steps.training.checkpoint_folder import CheckpointFolder
from steps.training.nodes import Team
from steps.training.placement import set_deterministic

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageContext:
    """Given to every stage.

    `work` holds the stage's checkpoints and scratch files and lies under its cache key, so that an interrupted stage
    finds them again whatever the run id is. `mirror` keeps the checkpoints where another machine finds them. `seed` is the
    stage's own child seed, `version` its source's, `label` the task of a foreach. `processes` train together. `own_run` is set
    with `store.cache = false`: only what this run left unfinished is taken up, and `work` carries its id.
    """

    stage: str
    store: Store
    work: Path
    seed: int
    version: int = 0
    label: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = field(default_factory=NullProgress)
    mirror: Mirror | None = None
    sigterm_grace_s: float = 10.0
    processes: int | Team = 1
    own_run: str = ""

    def checkpoints(self, name: str = "checkpoints") -> CheckpointFolder:
        """Where a training of this stage keeps its checkpoints: below `work` and, with a store on S3, there, too."""
        mirror = self.mirror.below(name) if self.mirror is not None else None
        return CheckpointFolder(self.work / name, mirror, grace_s=self.sigterm_grace_s)

    def share(self, *paths: Path) -> None:
        """Send finished files of `work` to the mirror, if there is one, in this order.

        A failure is a warning: what is on disk is safe, and another machine would only do it again.
        """
        if self.mirror is None:
            return
        try:
            for path in paths:
                self.mirror.send(path.relative_to(self.work).as_posix(), path)
        except StoreError as error:
            logger.warning(
                "stage=%s %s could not be sent to the store: %s", self.stage, paths[0].parent, error
            )

    def recover(self, marker: Path) -> None:
        """Bring a shared file from the mirror, and before it those of the same folder and below, unless it is here."""
        if self.mirror is None or marker.exists():
            return
        name = marker.relative_to(self.work).as_posix()
        names = self.mirror.names()
        if name not in names:
            return
        below = name.removesuffix(marker.name)
        for other in (*(item for item in names if item.startswith(below) and item != name), name):
            if not other.removeprefix(below).startswith("checkpoints/"):
                self.mirror.fetch(other, self.work / other)
        logger.info("stage=%s %s fetched from the store", self.stage, marker.parent)


def select_device(compute: ComputeConfig) -> torch.device:
    """The device the configuration asks for. Raises ConfigError when it asks for a GPU that is not there."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device is 'cuda' but torch finds no GPU; use 'auto' or 'cpu'")
    use_cuda = compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def configure_torch(compute: ComputeConfig) -> int:
    """Set thread count and deterministic algorithms for this process; returns the thread count."""
    threads = compute.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    if compute.deterministic:
        # cuBLAS needs this before its first call, else deterministic mode refuses to multiply matrices.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        set_deterministic(True)
    return threads


def quiet_libraries() -> None:
    """Switch off the loading bars of diffusers and transformers: models here are small, their bars only noise."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
