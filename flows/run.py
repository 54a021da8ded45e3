"""A finished run, to look at: its report, pictures, architecture and bundle, out of its store. Imports no torch."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from artifacts_schema.architecture import ArchitectureSpec, EvolutionRecord
from artifacts_schema.config import InvalidConfig, parse_config
from artifacts_schema.report import RunReport
from artifacts_schema.run_configs import ReportConfig, StoreConfig
from flows.environment import WORK_ROOT
from flows.presets import differences, presets, read_source
from flows.runs import named_reports
from steps.cache.leases import in_use
from steps.comparison.references import finished_runs, report_of, run_id_of
from steps.files.errors import SnapFusionError, StoreError
from steps.report.outputs import fetch_outputs
from steps.report.stored import record_of
from steps.store import Store, get_bytes, local_folder, open_store

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Run:
    """A finished run: `Run.open()` is the newest, `Run.open("champion")` the champion, `Run.open("17")` the one with this id."""

    id: str
    report: RunReport
    store: Store

    @classmethod
    def open(cls, which: str = "latest", *, store: Store | StoreConfig | None = None) -> Self:
        """The run that is meant (id, name, tag, latest, previous, champion), of the default store or another.

        Raises SnapFusionError naming the nearest run that is there.
        """
        place = store_at(store)
        (report,) = named_reports(place, [which])
        return cls(run_id_of(report), report, place)

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
        headline, sizes = self.report.headline, self._sizes()
        return {
            "id": self.id,
            "name": self.name,
            "preset": self.preset,
            "date": self.date,
            "distance": headline.get("student8_vs_base50.distance_ratio"),
            "clip": headline.get("student8_vs_base50.clip_difference"),
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
    """The store itself, the one that a configuration names, or the default one. Raises StoreError when there is none."""
    if place is not None and not isinstance(place, StoreConfig):
        return place
    config = place or StoreConfig()
    folder = local_folder(config, WORK_ROOT)
    if not config.root.startswith("s3:") and not folder.is_dir():
        raise StoreError(f"there is no store in {folder}; `snapfusion run` makes one, or name another")
    return open_store(config, WORK_ROOT)


def all_runs(store: Store) -> Iterator[Run]:
    """The finished runs, newest first."""
    for run_id in finished_runs(store):
        yield Run(run_id, report_of(store, run_id), store)


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return {name: parse_config(read_source(name)).model_dump(mode="json") for name in presets()}


def _apart(own: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Keys that differ, but for what says nothing about the method: name and store."""
    found = differences(known, own)
    return {key: value for key, value in found.items() if key != "run.name" and not key.startswith("store.")}
