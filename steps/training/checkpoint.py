"""Checkpoints: safetensors for tensors, JSON for the rest, atomic, the last two kept.

A checkpoint is a folder `checkpoint-<iteration>`; `state.json` is written last, names the SHA-256 of the tensor file and
carries its own, so a checkpoint that was cut off or damaged is recognised and the one before it is used.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from steps.files.disk import file_sha256, no_space_is_said, sync
from steps.files.errors import DamagedError
from steps.files.sealed import read_sealed, write_sealed

KEEP = 2
TENSORS = "tensors.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on: tensors by name, in the computer's own memory, and JSON-able state."""

    iteration: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write atomically, then remove all but the last two. Raises DiskFullError and leaves no partial checkpoint."""
    final = folder / _name(checkpoint.iteration)
    partial = folder / f".partial-{checkpoint.iteration:09d}-{os.getpid()}"
    with no_space_is_said("a checkpoint", folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, partial / TENSORS)
            sync(partial / TENSORS)
            digest = file_sha256(partial / TENSORS)
            head = {"iteration": checkpoint.iteration, "sha256": digest}
            write_sealed(partial / STATE, {**head, "state": checkpoint.state})
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync(folder)  # before the older ones go
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoint_folders(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def remove_hidden(folder: Path) -> None:
    """Remove what processes that were killed were writing, and what an earlier attempt put aside as damaged.

    Only for the one who may write there.
    """
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def put_aside(damaged: list[Path]) -> None:
    """Have damaged checkpoints count no longer. The newest stays for a look until the training starts once more."""
    for folder in sorted(damaged)[:-1]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted(damaged)[-1:]:
        folder.rename(folder.with_name(f".damaged-{folder.name}"))


def checkpoint_folders(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint. Raises as `check_checkpoint`."""
    head = check_checkpoint(folder)
    return Checkpoint(iteration=head["iteration"], tensors=load_file(folder / TENSORS), state=head["state"])


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """What `state.json` says. Raises DamagedError or FileNotFoundError when the checkpoint is not complete and undamaged,
    and OSError when the disk does not answer.
    """
    head = read_sealed(folder / STATE)
    if not folder.name.endswith(_name(head["iteration"])):
        raise DamagedError(f"{folder} holds the checkpoint of iteration {head['iteration']}")
    digest = file_sha256(folder / TENSORS)
    if digest != head["sha256"]:
        raise DamagedError(f"expected sha256 {head['sha256'][:12]}, found {digest[:12]}")
    return head


def _name(iteration: int) -> str:
    return f"checkpoint-{iteration:09d}"
