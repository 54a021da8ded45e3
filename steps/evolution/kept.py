"""What a round keeps on disk for a later attempt: its probes one by one, in the end its weights and its record.

All of it can be made again. So what is damaged counts as absent, with a warning; what is of another architecture, too: where
earlier work was lost, other scores can have led to other actions.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from artifacts_schema.architecture import ArchitectureSpec, EvolutionRound
from steps.files.disk import file_sha256, no_space_is_said, sync
from steps.files.errors import DamagedError
from steps.files.sealed import read_sealed, write_sealed
from steps.inputs.context import StageContext
from steps.unet.evolved import EvolvedUNet

logger = logging.getLogger(__name__)
Kept = TypeVar("Kept")


class ProbeFile:
    """Finished probes of one round; those of another architecture are dropped."""

    def __init__(self, context: StageContext, path: Path, layout: str) -> None:
        self._context, self._path, self._layout = context, path, layout
        self.scores: dict[str, list[float]] = {}
        found = _read_kept(context, path, read_sealed)
        if found is not None and found["layout"] == layout:
            self.scores = found["scores"]
            logger.info("%d finished probes found in %s", len(self.scores), path)

    def add(self, key: str, scores: list[float]) -> None:
        """Keep the scores of one probe, one per picture. Raises DiskFullError."""
        self.scores[key] = scores
        write_sealed(self._path, {"layout": self._layout, "scores": self.scores})
        self._context.share(self._path)


def save_round(context: StageContext, folder: Path, unet: EvolvedUNet, finished: EvolutionRound) -> None:
    """Keep a finished round: its weights, and last of all its record, which makes it count. Raises DiskFullError."""
    partial, final = folder / "unet.partial", folder / "unet"
    with no_space_is_said("a round", folder):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        try:
            unet.save_pretrained(partial, safe_serialization=True)
            for path in partial.iterdir():
                sync(path)
            os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    files = sorted(final.iterdir())
    record = folder / "round.json"
    hashes = {path.name: file_sha256(path) for path in files}
    write_sealed(record, {"round": finished.model_dump(mode="json"), "unet": hashes})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    context.share(*files, record)


def load_round(
    context: StageContext, folder: Path, before: ArchitectureSpec
) -> tuple[EvolvedUNet, EvolutionRound] | None:
    """The round that an earlier attempt finished, if it began with the architecture `before`; else None."""
    found = _read_kept(context, folder / "round.json", _read_round)
    if found is None:
        return None
    if found[1].layout_before != before.stages:
        logger.warning("the round in %s began with another architecture; it is done again", folder)
        return None
    logger.info("round=%d found in %s", found[1].index, folder)
    return found


def _read_round(path: Path) -> tuple[EvolvedUNet, EvolutionRound]:
    """Weights and record. Raises as `check_round`."""
    kept, weights = check_round(path), path.parent / "unet"
    unet: EvolvedUNet = EvolvedUNet.from_pretrained(weights, use_safetensors=True, local_files_only=True)
    return unet.eval(), EvolutionRound.model_validate(kept["round"])


def check_round(path: Path) -> dict[str, Any]:
    """What a round's record says. Raises DamagedError or FileNotFoundError when record or weights are not that round's."""
    kept = read_sealed(path)
    for name, sha256 in kept["unet"].items():
        if file_sha256(path.parent / "unet" / name) != sha256:
            raise DamagedError(f"{path.parent / 'unet' / name} does not have the hash it was kept with")
    return kept


def _read_kept(context: StageContext, path: Path, read: Callable[[Path], Kept]) -> Kept | None:
    """What `read` makes of a kept file, on disk or else in the mirror; None when there is none that is undamaged.

    A store or disk that does not answer damages nothing: its StoreError or OSError goes on to the caller.
    """
    for _ in range(2):  # the copy in the mirror is asked for when the one on disk is gone
        try:
            with no_space_is_said(path.name, path.parent):
                context.recover(path)
            return read(path) if path.exists() else None
        except (DamagedError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); it counts as absent", path, error)
            path.unlink(missing_ok=True)
    return None
