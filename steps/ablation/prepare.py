"""What an ablation is made of, before any arm runs: the finished run, the overlays, and what is already there."""

from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.ablation import AblationConfig, AblationRecord, Overlay, read_overlay
from artifacts_schema.base import content_hash
from artifacts_schema.config import SnapFusionConfig, parse_config
from artifacts_schema.report import RunReport
from steps.files.errors import ConfigError
from steps.store.base import Store

BUILT_IN = '# The recipe of this project, which the arms are held against.\n[ablation]\narm = "reference"\nsteps = [2, 8]\n'


def overlays(common: AblationConfig, run: SnapFusionConfig, folder: Path) -> list[Overlay]:
    """The reference and the arms that are asked for. Raises ConfigError for one that is not there, InvalidConfig for one that
    is not usable or changes nothing.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    if not files:
        raise ConfigError(f"expected overlays (*.toml) in {folder}, found none")
    unknown = [name for name in common.arms if name not in files]
    if unknown:
        raise ConfigError(f"arms names {', '.join(unknown)}, which {folder} lacks; it has {', '.join(files)}")
    names = common.arms or tuple(files)
    texts = {"reference": BUILT_IN} | {name: files[name].read_text(encoding="utf-8") for name in names}
    return [read_overlay(name, text, run, common) for name, text in texts.items()]


def run_config(report: RunReport) -> SnapFusionConfig:
    """The configuration of a finished run."""
    return parse_config(report.config)


def key_of(overlay: Overlay, common: AblationConfig, report: RunReport, code: str) -> str:
    """Names an arm's record and work folder: by the run, everything that differs, and the code."""
    shared = common.model_dump(mode="json", exclude={"run", "store", "overlays", "arms", "threads"})
    return content_hash(
        [report.identity(), overlay.arm.model_dump(mode="json"), overlay.changes, shared, code]
    )


def finished(store: Store, key: str) -> AblationRecord | None:
    """The record of an arm that has run before."""
    text = store.get_document(f"ablations/{key}")
    return AblationRecord.from_json(text) if text is not None else None


def keep(store: Store, run_id: str, key: str, record: AblationRecord) -> None:
    """Store an arm's record, and note it for the run whose ablation it is."""
    store.put_document(f"ablations/{key}", record.to_json())
    store.put_document(f"ablations/of/{run_id}/{record.name}", record.to_json())


def of_run(store: Store, run_id: str) -> Sequence[AblationRecord]:
    """The newest record of every arm of a run."""
    keys = store.list_documents(f"ablations/of/{run_id}/")
    return [AblationRecord.from_json(text) for key in keys if (text := store.get_document(key)) is not None]
