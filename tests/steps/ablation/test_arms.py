"""Every kind of arm, from a run's weights to measured pictures, on a micro model with two iterations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.ablation import AblationConfig, AblationRecord, read_overlay
from artifacts_schema.config import parse_config
from artifacts_schema.data import RawData
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.ablation.arms import WEIGHTS, Arm, FinishedRun
from steps.ablation.page import differences, page
from steps.ablation.prepare import BUILT_IN, finished, keep, of_run
from steps.evaluation import bench as bench_module
from steps.files.errors import EvaluationError
from steps.inputs.loaded import StageInputs
from steps.models.stored import save_model
from steps.pretraining.micro import write_micro_openclip
from steps.stages import latency_profile, start
from steps.unet.architecture import list_units, remove_unit
from steps.unet.conversion import as_evolved
from tests.factories import stage_context
from tests.steps.stages.test_real_pictures import brightness

COMMON = AblationConfig(iterations=2, batch_size=2, pictures=8)
CLIP = {"signal_clip": "clip", "measure_clip": "clip"}
CONFIG = parse_config(
    {
        "base": {"path": "micro"},
        "data": {"limit": 16},
        "evaluation": CLIP,
        "architecture_evolution": {"latency_budget": 0.9},
        "decoder_distillation": {"pool_size": 8, "ddim_steps": 2},
    }
)
ARMS = {
    "reference": BUILT_IN.replace("[2, 8]", "[2]"),
    "a_progressive": '[ablation]\narm = "a"\nteacher_steps = 8\nprogressive = true\n',
    "b_conditioned": '[ablation]\narm = "b"\nteacher_steps = 4\nconditioned = true\n',
    "g_dropping": '[ablation]\narm = "g"\nkind = "dropping"\nstart = "robust_training"\n',
    "h_evolved": '[ablation]\narm = "h"\nkind = "removal"\n',
    "h_slowest": '[ablation]\narm = "h"\nkind = "removal"\norder = "slowest"\n',
    "i_fresh": '[ablation]\narm = "i"\nkind = "decoder"\n[decoder_distillation]\nstart = "fresh"\n',
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, Any]:
    """A finished run, as far as arms read it: all of its UNets are the base's, untrained."""
    folder = tmp_path_factory.mktemp("run")
    write_micro_openclip(folder / "clip")
    context = stage_context(folder, "start")
    plan = start.run(RawData(), CONFIG, context, folder)
    base = StageInputs(plan, context).base
    unet = as_evolved(base.unet)
    weights = save_model(context.store, unet, schema="snapfusion.EvolvedUNet")
    first = list_units(unet.spec, unet.geometry())[0].id

    class Evolution:
        architecture = remove_unit(unet.spec, unet.geometry(), first)

    table = latency_profile.count(base, LatencyProfileConfig(backend="macs"))
    found = FinishedRun(plan, dict.fromkeys(WEIGHTS, weights), table, Evolution())  # type: ignore[arg-type]
    return found, context


def made(run: tuple[FinishedRun, Any], folder: Path, name: str) -> AblationRecord:
    finished_run, context = run
    own = replace(context, work=folder / name, label=name)
    own.work.mkdir()
    overlay = read_overlay(name, ARMS[name], CONFIG, COMMON)
    return Arm(finished_run, overlay, COMMON, own).record("7")


@pytest.mark.long
def test_every_kind_of_arm_is_made_measured_and_shown(
    run: tuple[FinishedRun, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "load_features", lambda *_: brightness)
    records = {name: made(run, tmp_path, name) for name in ARMS}
    store = run[1].store
    for name in ("reference", "a_progressive", "b_conditioned", "h_evolved", "h_slowest", "i_fresh"):
        assert records[name].iterations == 2, name
        assert records[name].curve
    assert set(records["reference"].points) == {"2 steps"}
    assert {place.split(",")[1] for place in records["g_dropping"].points} == {" 2 steps"}
    assert len(records["g_dropping"].points) > 3
    assert len({record.protocol["real_pictures"] for record in records.values()}) == 1
    for name, record in records.items():
        keep(store, "7", f"key of {name}", record)
    assert finished(store, "key of reference") == records["reference"]
    assert finished(store, "another") is None
    kept = of_run(store, "7")
    assert {record.name for record in kept} == set(ARMS)
    apart = differences(store, kept)
    assert {name for name, _ in apart} == {"a_progressive", "b_conditioned", "h_slowest"}
    same = records["reference"].points["2 steps"].clip_score.value
    other = records["b_conditioned"].points["2 steps"].clip_score.value
    assert apart["b_conditioned", "2 steps"]["clip_score"].value == pytest.approx(other - same, abs=1e-6)
    assert page(store, kept, "7")
    odd = records["a_progressive"].model_copy(update={"protocol": {}})
    with pytest.raises(EvaluationError, match="not measured alike"):
        differences(store, [records["reference"], odd])
