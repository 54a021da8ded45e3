"""A whole run in this process: every stage as the flow calls it, without Metaflow's tasks, which cost seconds each."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artifacts_schema.config import parse_config
from artifacts_schema.report import RunReport
from flows import config as flow_config
from flows import parts, runtime, stages
from flows.runtime import pack, unpack
from flows.shipped import evaluate_bundle
from tests.flows.launched import TRAININGS


def finished(folder: Path, text: str, run_id: str) -> RunReport:
    """Run the configuration in TOML `text` with everything below `folder`; returns the report."""
    found = flow_config.parse(text)
    found["store"]["root"] = str(folder / "store")
    card = SimpleNamespace(append=lambda _: None, refresh=lambda *_, **__: None)
    cards = {"progress": card, "report": card}
    task = SimpleNamespace(flow_name="none", run_id=run_id, origin_run_id=None, card=cards)
    flow: Any = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: found))
    with pytest.MonkeyPatch.context() as patch:
        for module in (runtime, parts):
            patch.setattr(module, "current", task)
        for module in (runtime, stages):
            patch.setattr(module, "WORK_ROOT", folder)
        _stages(flow, card)
    report: RunReport = unpack(flow.report_record)
    return report


def _stages(flow: Any, card: Any) -> None:
    """The steps of `SnapFusionFlow`, one after the other."""
    config = parse_config(flow.config.to_dict())
    flow.start_record = pack(stages.start(config))
    stages.latency_profile(flow)
    for stage in TRAININGS:
        stages.run(flow, stage)
    stages.run(flow, "real_pictures")
    made: dict[str, dict[str, Any]] = {"guidance_selection": {}, "evaluation": {}, "coreml_export": {}}
    for variant in parts.variants(config):
        guidance = stages.run(flow, "guidance_selection", variant)
        stages.run(flow, "evaluation", variant, {f"guidance_selection {variant}": guidance})
        for stage in ("guidance_selection", "evaluation"):
            made[stage][variant] = getattr(flow, f"{stage}_record")
    for component in config.coreml_export.components:
        stages.run(flow, "coreml_export", component)
        made["coreml_export"][component] = flow.coreml_export_record
    for stage, records in made.items():
        setattr(flow, f"{stage}_records", records)
        delattr(flow, f"{stage}_record")
    stages.run(flow, "coreml_compression")
    stages.bundle(flow)
    evaluate_bundle(flow)
    stages.report(flow, card)
