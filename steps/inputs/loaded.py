"""What a stage reads, loaded from a run plan on first use."""

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from artifacts_schema.plan import InputName, RunPlan
from artifacts_schema.references import FolderRef
from steps.data.prepared import PreparedData
from steps.files.errors import ConfigError, StoreError
from steps.inputs.context import StageContext
from steps.models.base import BaseModel, WeightsOf, load_base
from steps.models.clip import ClipScorer
from steps.store.base import PARTIAL


class StageInputs:
    """Base, data, warm starts and evaluators of one run, from its plan, and results of earlier stages.

    A stage whose result is cached is given `reads` and `earlier`, the inputs in its cache key: reading any other raises
    ConfigError, or a change of that input would go unnoticed.
    """

    def __init__(
        self,
        plan: RunPlan,
        context: StageContext,
        reads: Collection[InputName] = get_args(InputName),
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan = plan
        self._reads = reads
        self._earlier = earlier or {}
        self.context = context

    def earlier(self, name: str) -> Any:
        """An earlier stage's record or weights, by the name in the stage's `after`; None for the base's own."""
        if name not in self._earlier:
            raise ConfigError(
                f"{self.context.stage} reads {name!r}, but only {', '.join(self._earlier) or 'nothing'} of earlier "
                "stages is in its cache key; name it in the stage's `after` in steps/stages/table.py"
            )
        return self._earlier[name]

    @property
    def earlier_names(self) -> tuple[str, ...]:
        """What `earlier` knows; a result that this run does not have is not among them."""
        return tuple(self._earlier)

    @cached_property
    def base(self) -> BaseModel:
        """The base model in float32."""
        return load_base(self._required("base"))

    def base_with(self, only: Collection[WeightsOf]) -> BaseModel:
        """The base with the weights of `only` these components, see `load_base`."""
        return load_base(self._required("base"), only=only)

    @property
    def base_identity(self) -> str:
        """What the base's folder holds, whatever lies beside it in the store."""
        return self._readable("base").base_identity

    @cached_property
    def data(self) -> PreparedData:
        """Captions, cached latents and text embeddings."""
        return PreparedData.load(self.context.store, self._readable("data").data)

    @cached_property
    def signal_clip(self) -> ClipScorer:
        """The evaluator that may guide decisions (evolution, guidance scale)."""
        return ClipScorer.load(self._required("signal_clip"), self.context.device)

    @cached_property
    def measure_clip(self) -> ClipScorer:
        """The evaluator that only measures."""
        return ClipScorer.load(self._required("measure_clip"), self.context.device)

    @cached_property
    def inception(self) -> Path | None:
        """Inception's program, for evaluations that use its features; None for others."""
        ref = self._readable("inception").inception
        return self.context.store.path_of(ref) if ref is not None else None

    @cached_property
    def protocols(self) -> Path | None:
        """The folder of frozen protocols; None where the data's own splits are measured on."""
        return self.folder("protocols")

    def identity(self, name: InputName) -> str:
        """Identity of an input; empty for one that there is not."""
        return self._readable(name).identity_of(name)

    def folder(self, name: InputName) -> Path | None:
        """Local copy of an optional folder of the plan, such as `velocity_warm_start`; None when there is none."""
        ref: FolderRef | None = getattr(self._readable(name), name)
        return fetch_folder(self.context, ref, name) if ref is not None else None

    def _readable(self, name: InputName) -> RunPlan:
        if name not in self._reads:
            raise ConfigError(
                f"{self.context.stage} reads the run's {name}, but only {', '.join(self._reads)} in its cache key; "
                "name it in the `reads` of the stage in steps/stages/table.py"
            )
        return self._plan

    def _required(self, name: InputName) -> Path:
        path = self.folder(name)
        if path is None:
            raise StoreError(f"the run plan has no {name}; start the run again")
        return path


def fetch_folder(context: StageContext, ref: FolderRef, name: str) -> Path:
    """A local copy of a stored folder, made of links to the store's verified objects, or of copies.

    Raises StoreError for a damaged object or a stored path that would leave the folder.
    """
    target = context.work / "inputs" / f"{name}-{ref.identity()[:16]}"
    for relative, item in ref.files.items():
        path = (target / relative).resolve()
        if not path.is_relative_to(target.resolve()):
            raise StoreError(f"file {relative!r} of the stored folder '{name}' leads out of it")
        source = context.store.path_of(item)
        if path.exists() and path.samefile(source):
            continue  # else it is a copy, or of an object that was damaged and has been stored again
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=PARTIAL) as folder:
            partial = Path(folder) / "file"
            try:
                os.link(source, partial)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, partial)
            partial.replace(path)
    return target
