"""A finished run, to look at: its report, pictures, architecture and bundle, out of its store. Imports no torch."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from artifacts_schema.architecture import ArchitectureSpec, EvolutionRecord
from artifacts_schema.config import InvalidConfig, ReportConfig, StoreConfig, parse_config
from artifacts_schema.report import RunReport
from flows.environment import WORK_ROOT
from flows.presets import differences, presets, read_source
from steps.cache.leases import in_use
from steps.files.errors import SnapFusionError
from steps.report.outputs import fetch_outputs
from steps.report.stored import record_of
from steps.store import Store, get_bytes, open_store

if TYPE_CHECKING:
    from PIL.Image import Image

_REPORTS = "reports/"
_STUDENT = "student8_vs_base50"


@dataclass(frozen=True)
class Run:
    """A finished run: `Run.open()` is the newest, `Run.open("1720000000000000")` the one with this id."""

    id: str
    report: RunReport
    store: Store

    @classmethod
    def open(cls, run_id: str | None = None, *, store: Store | StoreConfig | None = None) -> Self:
        """The run with this id, or the newest, of the default store or another.

        Raises SnapFusionError naming the runs that are there.
        """
        place = store_at(store)
        known = run_ids(place)
        if not known:
            raise SnapFusionError(
                f"no finished run in the store {place.root}; run the flow first, or name another store"
            )
        name = known[0] if run_id is None else run_id
        text = place.get_document(f"{_REPORTS}{name}")
        if text is None:
            raise SnapFusionError(
                f"run {name} has no report in the store {place.root}; known: {', '.join(known)}"
            )
        return cls(name, RunReport.from_json(text), place)

    def record(self, stage: str) -> Any:
        """The record of a stage, such as "student_8" or "evaluation base_50". Raises StoreError when it is gone."""
        if stage not in self.report.inputs:
            raise SnapFusionError(
                f"run {self.id} has no record '{stage}'; it has: {', '.join(self.report.inputs)}"
            )
        return record_of(self.store, self.report, stage)

    @property
    def name(self) -> str:
        """What the configuration calls the run."""
        return self.report.name

    @property
    def date(self) -> str:
        """When it ended, UTC, ISO 8601; "" where it is not known."""
        return self.report.provenance.created_at if self.report.provenance else ""

    @property
    def preset(self) -> str:
        """The preset that its configuration is nearest to, and how many keys differ, as `openmoji +2`."""
        try:
            own = parse_config(self.report.config).model_dump(mode="json")
        except InvalidConfig:  # of another version
            return "?"
        found = {name: len(_apart(own, known)) for name, known in _presets().items()}
        nearest = min(found, key=lambda name: found[name])
        return nearest if not found[nearest] else f"{nearest} +{found[nearest]}"

    @property
    def architecture(self) -> ArchitectureSpec:
        """Blocks of the student's UNet."""
        return self.evolution.architecture

    @property
    def evolution(self) -> EvolutionRecord:
        """How the architecture was found, and its predicted latency."""
        found: EvolutionRecord = self.record("architecture_evolution")
        return found

    @property
    def pictures(self) -> "dict[str, Image]":
        """A grid of the same captions and noise for every variant that was evaluated, RGB."""
        from PIL import Image as pillow

        return {
            name: pillow.open(io.BytesIO(get_bytes(self.store, grid)))
            for name, grid in self.report.grids.items()
        }

    def outputs(self, folder: Path | None = None) -> Path:
        """Fetch bundle, pictures and report.json, to where runs of this machine put theirs or to `folder`; returns it."""
        target = folder or WORK_ROOT / ReportConfig().output / self.id
        with in_use(self.store, "outputs"):
            fetch_outputs(self.store, self.report, target)
        return target

    def bundle(self, folder: Path | None = None) -> Path:
        """The Core ML bundle's folder, fetched as by `outputs`."""
        return self.outputs(folder) / "bundle"

    def row(self, champion: str | None = None) -> dict[str, Any]:
        """One line of the table of runs; None for what it has not.

        `distance` is the ratio of the kernel distances and `clip` the difference of the CLIP scores, of the 8-step student
        with the small decoder to the base in 50 steps; `ms` a guided step of its UNet by the latency table; `size_mib`
        the bundle's packages.
        """
        quality, sizes = self.report.quality, self._sizes()
        distance, clip = (quality.get(f"{_STUDENT}.{name}") for name in ("distance_ratio", "clip_difference"))
        return {
            "id": self.id,
            "name": self.name,
            "preset": self.preset,
            "date": self.date,
            "distance": distance.value if distance else None,
            "clip": clip.value if clip else None,
            "ms": self._milliseconds(),
            "size_mib": sum(sizes) if sizes else None,
            "smoke": self.report.smoke,
            "champion": self.id == champion,
        }

    def _sizes(self) -> list[float]:
        headline = self.report.headline.items()
        return [
            value for name, value in headline if name.startswith("coreml.") and name.endswith(".size_mib")
        ]

    def _milliseconds(self) -> float | None:
        try:
            record = self.evolution
        except SnapFusionError:  # not there, or no longer: the line tells the rest
            return None
        return record.predicted_latency if record.latency_unit == "ms" else None


def store_at(place: Store | StoreConfig | None) -> Store:
    """The store itself, the one that a configuration names, or the default one."""
    if place is None or isinstance(place, StoreConfig):
        return open_store(place or StoreConfig(), WORK_ROOT)
    return place


def run_ids(store: Store) -> list[str]:
    """Ids of the finished runs, newest first: by time, as ids of different services count differently."""
    entries = sorted(store.documents(_REPORTS), key=lambda entry: entry.age_s)
    return [entry.name.removeprefix(_REPORTS) for entry in entries]


def all_runs(store: Store) -> Iterator[Run]:
    """The finished runs, newest first."""
    for run_id in run_ids(store):
        text = store.get_document(f"{_REPORTS}{run_id}")
        if text is not None:  # collected meanwhile
            yield Run(run_id, RunReport.from_json(text), store)


def champion(store: Store) -> str | None:
    """Id of the run that was promoted last; None when there is none."""
    text = store.get_document("registry/champion")
    events = json.loads(text)["events"] if text else []
    return events[-1]["run"] if events else None


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return {name: parse_config(read_source(name)).model_dump(mode="json") for name in presets()}


def _apart(own: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Keys that differ, but for what says nothing about the method: name and store."""
    found = differences(known, own)
    return {key: value for key, value in found.items() if key != "run.name" and not key.startswith("store.")}
