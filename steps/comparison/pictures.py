"""The same captions drawn by every run, beside the real picture; what changed most comes first."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from artifacts_schema.data import PreparedSplit
from artifacts_schema.evaluation import EvaluationRecord
from artifacts_schema.plan import RunPlan
from steps.comparison.runs import Run
from steps.files.errors import StoreError
from steps.store.base import Store, get_bytes

_SIDE = 192  # pixels of a larger picture's longer side on the page
_ENOUGH = 16  # captions: more make the card heavy and are read by nobody
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class CaptionRow:
    """One caption: its real picture (None where it is not known), every column's picture, and their CLIP scores."""

    caption: str
    real: bytes | None
    pictures: tuple[bytes, ...]
    scores: tuple[float, ...]
    change: float  # largest CLIP difference between the runs


def common_base(runs: Sequence[Run]) -> EvaluationRecord | None:
    """What all the runs start from, drawn with the base's own steps; None where that is not one and the same."""
    found = [run.evaluations.get("base_50") for run in runs]
    first = found[0]
    same = first and all(item and item.point.images.sha256 == first.point.images.sha256 for item in found)
    return first if same else None


def caption_rows(store: Store, runs: Sequence[Run], subject: str) -> list[CaptionRow]:
    """One row a caption, those that changed most first; the base comes before the runs where they share one.

    Only captions whose pictures are kept are shown, and the first drawing of each.
    """
    base = common_base(runs)
    records = [
        *([base] if base and subject != "base_50" else []),
        *(run.evaluations[subject] for run in runs),
    ]
    tensors = [load_file(store.path_of(record.point.images)) for record in records]
    kept = min(len(found["images"]) for found in tensors)
    captions = records[-1].captions[:kept]
    first = {caption: place for place, caption in reversed(list(enumerate(captions)))}
    scores = np.stack([found["clip"][:kept] for found in tensors[-len(runs) :]])
    change = scores.max(0) - scores.min(0)
    order = sorted(first.values(), key=lambda place: (-float(change[place]), place))[:_ENOUGH]
    real = _RealPictures(store, runs[0], records[-1])
    return [
        CaptionRow(
            captions[place],
            real.of(captions[place]),
            tuple(encoded(found["images"][place]) for found in tensors),
            tuple(float(found["clip"][place]) for found in tensors),
            float(change[place]),
        )
        for place in order
    ]


def encoded(image: Pixels) -> bytes:
    """A uint8 picture (3, H, W) as WebP: without loss where it is small, else scaled down."""
    found, buffer = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), io.BytesIO()
    small = max(found.size) <= _SIDE
    if not small:
        found.thumbnail((_SIDE, _SIDE))
    found.save(buffer, format="WEBP", lossless=small, quality=85)
    return buffer.getvalue()


class _RealPictures:
    """The pictures of a run's data, by caption."""

    def __init__(self, store: Store, run: Run, record: EvaluationRecord) -> None:
        self._store, self._split, self._places = store, None, dict[str, int]()
        plan = run.records.get("start")
        split = str(record.protocol.get("split", ""))
        if not isinstance(plan, RunPlan):
            return
        self._split = next((item for name, item in plan.data.splits.items() if name == split), None)
        if self._split:
            names = json.loads(get_bytes(store, self._split.captions)) if self._split.captions else []
            self._places = {name: place for place, name in reversed(list(enumerate(names)))}

    def of(self, caption: str) -> bytes | None:
        """The caption's (first) picture; None where the data do not have it, or its object is gone."""
        if self._split is None or caption not in self._places:
            return None
        row = self._places[caption] * self._split.variants
        kind, shards = (
            ("rows", self._split.images)
            if isinstance(self._split, PreparedSplit)
            else ("images", self._split.shards)
        )
        for shard in shards:
            if row < shard.rows:
                try:
                    return encoded(_row(self._store.path_of(shard.object), kind, row))
                except StoreError:
                    return None
            row -= shard.rows
        return None


def _row(path: Any, kind: str, row: int) -> Pixels:
    with safe_open(path, framework="np") as file:
        found: Pixels = file.get_slice(kind)[row]
    return found
