"""Checkpoints: safetensors for tensors, JSON for the rest, atomic, the last two kept.

A checkpoint is a folder `checkpoint-<iteration>`; `state.json` is written last and names the SHA-256 of the tensor
file, so a checkpoint that was cut off or damaged is recognised and the one before it is used.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from steps.errors import DiskFullError

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
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"checkpoint-{checkpoint.iteration:09d}"
    partial = folder / f".partial-{checkpoint.iteration:09d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, partial / TENSORS)
        digest = _sha256(partial / TENSORS)
        head = {"iteration": checkpoint.iteration, "sha256": digest}
        (partial / STATE).write_text(json.dumps({**head, "state": checkpoint.state}))
        for name in (TENSORS, STATE):
            _sync(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(folder)  # before the older ones go
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if _error_number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"no space left for a checkpoint in {folder}; free some and resume"
            ) from error
        raise
    for old in checkpoint_folders(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def remove_partial(folder: Path) -> None:
    """Remove what was left by processes that were killed while they wrote. Only for the one who may write there."""
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*")) if folder.is_dir() else []


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint. Raises OSError, KeyError or ValueError when it is not complete and undamaged."""
    payload = json.loads((folder / STATE).read_text())
    digest = _sha256(folder / TENSORS)
    if digest != payload["sha256"]:
        raise ValueError(f"expected sha256 {payload['sha256'][:12]}, found {digest[:12]}")
    return Checkpoint(
        iteration=int(payload["iteration"]), tensors=load_file(folder / TENSORS), state=payload["state"]
    )


def _error_number(error: Exception) -> int | None:
    """The operating system's number of an error; safetensors gives it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
