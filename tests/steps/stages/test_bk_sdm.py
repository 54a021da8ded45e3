"""A base like BK-SDM's small one, whose UNet has no middle, goes through every stage that handles a UNet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts_schema.references import WeightsRef
from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.inputs.context import StageContext
from steps.models.stored import load_model, save_model
from steps.stages import architecture_evolution, coreml_export, latency_profile, robust_training
from steps.stages.step_distillation import distil_weights
from steps.unet.architecture import list_units, remove_unit
from steps.unet.blocks import full_spec
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet
from tests.factories import BK_SDM, TINY_CONFIG, context, tiny_base, tiny_data, tiny_inputs, tiny_unet
from tests.factories import two_level_base as whole_base
from tests.steps.evolution.factories import BrightnessScorer, TinyData
from tests.steps.export.factories import TWO_LEVELS, export_base, pictures
from tests.steps.stages.test_architecture_evolution import CONFIG
from tests.steps.stages.test_robust_training import CONFIG as ROBUST
from tests.steps.stages.test_step_distillation import QUICK, SHARED

GEOMETRY = TINY_CONFIG | BK_SDM


def stored(where: StageContext, unet: Any = None) -> WeightsRef:
    unet = tiny_unet(**BK_SDM) if unet is None else unet
    evolved = isinstance(unet, EvolvedUNet)
    return save_model(
        where.store, unet, schema="snapfusion.EvolvedUNet" if evolved else "diffusers.UNet2DConditionModel"
    )


def test_it_is_stored_enumerated_and_profiled(tmp_path: Path) -> None:
    spec = full_spec(GEOMETRY)
    assert "mid" not in {stage.stage for stage in spec.stages}
    assert {unit.kind for unit in list_units(spec, GEOMETRY)} == {"attention", "pair", "lone_up"}
    table = latency_profile.count(tiny_base(**BK_SDM), LatencyProfileConfig(backend="macs"))
    assert table.explained == pytest.approx(1.0)
    where = context(tmp_path)
    smaller = remove_unit(spec, GEOMETRY, "up.3.attentions.0")
    unet = build(smaller, tiny_unet(**BK_SDM))
    found = load_model(where.store, stored(where, unet))
    with torch.no_grad():
        assert torch.equal(found(*tiny_inputs()).sample, unet(*tiny_inputs()).sample)


def test_its_blocks_are_dropped_and_evolved(tmp_path: Path) -> None:
    where, base = context(tmp_path), tiny_base(**BK_SDM)
    record = robust_training.train_robust(base, stored(where), TinyData(), ROBUST, where, warm_start=None)
    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    evolved = architecture_evolution.evolve(
        base, record.weights, table, TinyData(), BrightnessScorer(), config=CONFIG, context=where
    )
    assert evolved.predicted_ratio <= CONFIG.latency_budget
    assert evolved.architecture.removed


def test_it_is_distilled(tmp_path: Path) -> None:
    where = context(tmp_path)
    whole = whole_base(tmp_path / "base")
    changes = {
        name: whole.unet.config[name] for name in ("sample_size", "cross_attention_dim", "in_channels")
    }
    unet = tiny_unet(**BK_SDM, **changes, out_channels=changes["in_channels"])
    teacher = stored(where, EvolvedUNet.from_unet(unet))
    record = distil_weights(
        replace(whole, unet=unet), teacher, teacher, tiny_data(), shared=SHARED, config=QUICK, context=where,
        student_steps=8, cfg_aware=True,
    )  # fmt: skip
    assert isinstance(load_model(where.store, record.weights), EvolvedUNet)


def test_it_is_exported(tmp_path: Path) -> None:
    where = context(tmp_path, "coreml_export")
    unet = tiny_unet(**TWO_LEVELS | {"mid_block_type": None})
    base = replace(export_base(), unet=unet)
    config = CoremlExportConfig(program_check=ProgramCheckConfig(captions=1, timesteps=(999,), pictures=1))
    weights = stored(where, EvolvedUNet.from_unet(unet))
    report = coreml_export.export_component(
        "unet", base, pictures(), config, where, weights=weights, prediction_type="epsilon"
    )
    assert report.package
