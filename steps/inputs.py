"""What a stage reads, loaded from a run plan on first use."""

import os
import shutil
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from artifacts_schema.plan import RunPlan
from artifacts_schema.references import FolderRef
from steps.context import StageContext
from steps.data.prepared import PreparedData
from steps.errors import StoreError
from steps.evaluation.clip_score import ClipScorer
from steps.models import BaseModel, WeightsOf, load_base


class StageInputs:
    """Base, data, warm starts and evaluators of one run, from its plan."""

    def __init__(self, plan: RunPlan, context: StageContext) -> None:
        self.plan = plan
        self.context = context

    @cached_property
    def base(self) -> BaseModel:
        """The base model in float32."""
        return load_base(fetch_folder(self.context, self.plan.base, "base"))

    def base_with(self, only: Collection[WeightsOf]) -> BaseModel:
        """The base with the weights of `only` these components, see `load_base`."""
        return load_base(fetch_folder(self.context, self.plan.base, "base"), only=only)

    @cached_property
    def data(self) -> PreparedData:
        """Captions, cached latents and text embeddings."""
        return PreparedData.load(self.context.store, self.plan.data)

    @cached_property
    def signal_clip(self) -> ClipScorer:
        """The evaluator that may guide decisions (evolution, guidance scale)."""
        return ClipScorer.load(self._required("signal_clip"))

    @cached_property
    def measure_clip(self) -> ClipScorer:
        """The evaluator that only measures."""
        return ClipScorer.load(self._required("measure_clip"))

    @cached_property
    def inception(self) -> Path | None:
        """Inception's weights, for evaluations that use its features; None for others."""
        ref = self.plan.inception
        return self.context.store.path_of(ref) if ref is not None else None

    def folder(self, name: str) -> Path | None:
        """Local copy of an optional folder of the plan, such as `velocity_warm_start`; None when there is none."""
        ref = getattr(self.plan, name)
        return fetch_folder(self.context, ref, name) if ref is not None else None

    def _required(self, name: str) -> Path:
        path = self.folder(name)
        if path is None:
            raise StoreError(f"the run plan has no {name}; start the run again")
        return path


def fetch_folder(context: StageContext, ref: FolderRef, name: str) -> Path:
    """A local copy of a stored folder, made of links to the store's verified objects.

    Raises StoreError for a damaged object or a stored path that would leave the folder.
    """
    target = context.work / "inputs" / f"{name}-{ref.identity()[:16]}"
    for relative, item in ref.files.items():
        path = (target / relative).resolve()
        if not path.is_relative_to(target.resolve()):
            raise StoreError(f"file {relative!r} of the stored folder '{name}' leads out of it")
        source = context.store.path_of(item)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, path)
    return target
