"""Drives every stage of a run without any work: what is captured are the cache keys that the real flow computes."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.base import Provenance
from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef, ObjectRef
from artifacts_schema.result_configs import EvaluationConfig
from flows import runtime, stages
from steps.cache.keys import CacheResult, StageKey
from steps.evaluation.variants import COMPRESSED
from steps.inputs import checks as run_checks
from steps.inputs import folders as input_folders
from steps.models.base_folder import folder_identity
from steps.stages.table import STAGES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"
EXAMPLES = {
    "start": "run_plan_v1",
    "latency_profile": "latency_v1",
    "architecture_evolution": "evolution_v1",
    "real_pictures": "real_pictures_v1",
    "guidance_selection": "guidance_v1",
    "evaluation": "evaluation_v1",
    "coreml_export": "component_v1",
    "coreml_compression": "compression_v1",
    "bundle_drawing": "bundle_drawing_v1",
}
# The compressed bundle is drawn by a step of its own, flows.shipped.
VARIANTS = tuple(name for name in EvaluationConfig().variants if name != COMPRESSED)
COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder", "safety_checker")


@cache
def example(name: str) -> Any:
    """A stored record."""
    return read_record((FIXTURES / f"{name}.json").read_text())


def record_of(key: StageKey, *, propagate: bool) -> Any:
    """An example of the stage's record. With `propagate` its identity, and that of its weights, follow from the key."""
    record = example(EXAMPLES.get(key.stage, "training_v1"))
    known = key.sha256 if propagate else hashlib.sha256(f"{key.stage} {key.label}".encode()).hexdigest()
    changes: dict[str, Any] = {"seed": int(known[:12], 16), "provenance": Provenance(created_at="")}
    if key.stage == "start":
        for name in ("base", "velocity_warm_start", "robust_warm_start", "signal_clip", "measure_clip"):
            changes[name] = _folder(key.inputs[name] if propagate else name)
        data = [key.config["data"], key.inputs["base"], key.inputs["raw data"]] if propagate else []
        changes["data"] = record.data.model_copy(update={"source": str(data)})
    if hasattr(record, "weights"):
        changes["weights"] = record.weights.model_copy(update={"sha256": known})
    if key.stage == "coreml_export":
        changes["component"] = key.label
    if key.stage == "coreml_compression":
        changes["chosen"] = {}
    return record.model_copy(update=changes)


def _folder(text: str) -> FolderRef:
    sha = hashlib.sha256(text.encode()).hexdigest()
    return FolderRef(files={"file": ObjectRef(uri=f"sha256:{sha}", sha256=sha, bytes=1)})


def _left_out(name: str, config: SnapFusionConfig) -> bool:
    """True for a component that only the test exports."""
    stage, _, label = name.partition(" ")
    return stage == "coreml_export" and label not in config.coreml_export.components


_folder_identity = cache(
    folder_identity
)  # of the shipped folders, which no test changes: hashed once for all tests
_DEFAULT: dict[bool, dict[str, StageKey]] = {}  # of the default configuration, for all tests


class Keys:
    """Computes the keys of a whole run below `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.propagate = folder, False
        self.found: dict[str, StageKey] = {}
        stand_in = SimpleNamespace(card={"progress": []}, run_id="1", origin_run_id=None)
        monkeypatch.setattr(runtime, "current", stand_in)
        monkeypatch.setattr(runtime, "stage_of_run", self._captured)
        # Of no consequence for a key, and slow.
        monkeypatch.setattr(run_checks, "check_run", lambda *_: None)
        monkeypatch.setattr(runtime, "configure_logging", lambda: None)
        monkeypatch.setattr(input_folders, "folder_identity", _folder_identity)

    def _captured(self, store: Any, run_id: str, key: StageKey, work: Any, **_: Any) -> CacheResult:
        self.found[f"{key.stage} {key.label}".strip()] = key
        return CacheResult(record_of(key, propagate=self.propagate), True, key.sha256, "captured")

    def config(self, changes: Mapping[str, Any]) -> SnapFusionConfig:
        """The default configuration with some values changed, each named with dots."""
        payload: dict[str, Any] = {"store": {"root": str(self.folder / "store")}}
        for name, value in changes.items():
            *sections, last = name.split(".")
            place = payload
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return parse_config(payload)

    def of(self, changes: Mapping[str, Any], *, propagate: bool = False) -> dict[str, StageKey]:
        """Every stage's key. Without `propagate` a stage is given the same inputs whatever ran before it."""
        self.found, self.propagate = {}, propagate
        config = self.config(changes)
        records: dict[str, Any] = {"start": stages.start(config)}
        labels = {"guidance_selection": VARIANTS, "evaluation": VARIANTS, "coreml_export": COMPONENTS}
        for name, stage in STAGES.items():
            if name in ("start", "bundle_drawing"):
                continue
            for label in labels.get(name, ("",)):
                of_run = {known: records[known] for known in records if not _left_out(known, config)}
                records[f"{name} {label}".strip()] = runtime.run_stage(stage, config, of_run, label)
        stages.bundle_drawing(config, records, stages.shipped(records, config), self.folder)
        return self.found

    def changed(self, changes: Mapping[str, Any], *, propagate: bool = False) -> set[str]:
        """Names of the stages whose keys differ from those of the default configuration."""
        if propagate not in _DEFAULT:
            _DEFAULT[propagate] = self.of({}, propagate=propagate)
        before, after = _DEFAULT[propagate], self.of(changes, propagate=propagate)
        return {name for name in before if before[name].sha256 != after[name].sha256}
