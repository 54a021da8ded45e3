"""Estimates of time and memory before a run."""

from pathlib import Path

import pytest
import torch

from artifacts_schema.config import InvalidConfig, SnapFusionConfig, parse_config
from artifacts_schema.run_configs import ComputeConfig
from steps.latency.estimates import StageEstimate, format_estimates, stage_estimates
from steps.latency.unit_costs import measure_unit_costs
from steps.models.base import load_base
from steps.pretraining.micro import write_micro_base

COSTS = {
    "unet_forward_s": 0.01,
    "decoder_forward_s": 0.02,
    "unet_activation_bytes": 1e6,
    "decoder_activation_bytes": 4e6,
    "unet_parameters": 1e6,
    "decoder_parameters": 1e5,
    "units": 20.0,
}


OTHERS = (
    "velocity_finetuning", "architecture_evolution", "teacher_16", "student_16", "student_8", "decoder_distillation",
)  # fmt: skip


def seconds(stage: str, config: SnapFusionConfig | None = None) -> float:
    found = {e.stage: e for e in stage_estimates(config or SnapFusionConfig(), COSTS)}
    return found[stage].seconds


CHECKS = 3 * 128 * 0.01  # the start, the middle and the end, on 128 samples


def test_a_training_costs_its_forward_and_backward_passes_and_its_checks() -> None:
    config = parse_config({"robust_training": {"training": {"iterations": 10, "batch_size": 4}}})
    assert seconds("robust_training", config) == pytest.approx(10 * 4 * 3 * 0.01 + CHECKS)


def test_a_distillation_draws_once_with_its_teacher_and_at_every_check_with_its_student() -> None:
    def drawn(checks: int, teacher: str = "architecture_evolution") -> float:
        shared = {"final_steps": 8, "intermediate_steps": 16, "validation_captions": 5}
        stage = {"teacher": teacher, "training": {"iterations": 0, "held_out_checks": checks}}
        config = {"step_distillation": shared, "student_16": stage}
        return seconds("student_16", parse_config(config))

    # The evolved UNet costs half of the base; every step is guided.
    assert drawn(1) == pytest.approx(5 * 2 * 0.01 * 0.5 * (32 + 2 * 16))
    assert drawn(4) == pytest.approx(5 * 2 * 0.01 * 0.5 * (32 + 5 * 16))
    assert drawn(1, "velocity_finetuning") == pytest.approx(5 * 2 * 0.01 * (32 + 0.5 * 2 * 16))


def test_start_is_told_of_where_the_number_of_pictures_is_known() -> None:
    encoding = {"encoder_forward_s": 0.5, "text_encoder_forward_s": 0.25, "pictures": 100.0}
    first = stage_estimates(SnapFusionConfig(), COSTS | encoding)[0]
    assert (first.stage, first.seconds) == ("start", 75.0)
    assert "start" not in {estimate.stage for estimate in stage_estimates(SnapFusionConfig(), COSTS)}


def test_accumulation_counts_and_precision_halves_activations_only() -> None:
    training = {"iterations": 10, "batch_size": 4, "accumulation": 3}
    config = parse_config({"robust_training": {"training": training}})
    half = parse_config({"robust_training": {"training": training | {"precision": "bf16"}}})
    assert seconds("robust_training", config) == pytest.approx(3 * 10 * 4 * 3 * 0.01 + CHECKS)
    memory = [
        next(e.memory_bytes for e in stage_estimates(c, COSTS) if e.stage == "robust_training") or 0.0
        for c in (config, half)
    ]
    assert memory[0] - memory[1] == pytest.approx(0.5 * 4 * 1e6)


def test_evaluation_counts_both_branches_of_every_step_and_the_choice_of_a_scale() -> None:
    section = {
        "variants": ["base_50"],
        "pictures": 5,
        "validation_pictures": 3,
        "guidance_scales": [2.0, 3.0],
        "base_steps": 50,
    }
    picture = 50 * 2 * 0.01 + 0.02
    assert seconds("evaluation", parse_config({"evaluation": section})) == pytest.approx(5 * picture)
    assert seconds("guidance_selection", parse_config({"evaluation": section})) == pytest.approx(6 * picture)
    one = parse_config({"evaluation": section | {"guidance_scales": [2.0]}})
    assert "guidance_selection" not in {item.stage for item in stage_estimates(one, COSTS)}


def test_what_was_measured_of_backward_passes_and_updates_counts() -> None:
    measured = COSTS | {"unet_training_s": 0.05, "unet_update_s": 2.0, "unet_forward_bf16_s": 0.002}

    def told(**training: object) -> float:
        shared = {"iterations": 10, "batch_size": 4, **training}
        config = parse_config({"robust_training": {"training": shared}})
        return next(e.seconds for e in stage_estimates(config, measured) if e.stage == "robust_training")

    assert told() == pytest.approx(40 * 0.05 + 10 * 2.0 + CHECKS)
    assert told(gradient_checkpointing=True) - told() == pytest.approx(40 * 0.01)
    assert told(precision="bf16") == pytest.approx(40 * 3 * 0.002 + 20.0 + 3 * 128 * 0.002)


def test_processes_share_a_training() -> None:
    def told(processes: int) -> float:
        training = {"iterations": 10, "batch_size": 4, "held_out_checks": 1}
        config = {"compute": {"processes": processes}, "robust_training": {"training": training}}
        everything = parse_config(config | {name: {"training": {"batch_size": 4}} for name in OTHERS})
        return seconds("robust_training", everything)

    assert told(1) - told(2) == pytest.approx(20 * 3 * 0.01)


def test_cost_needs_a_price() -> None:
    found = stage_estimates(SnapFusionConfig(), COSTS)
    total = sum(e.seconds for e in found) / 3600
    assert "cost" not in format_estimates(found, price_of=lambda _: 0.0, measured_on="x")
    assert f"cost {total * 9:.2f}" in format_estimates(found, price_of=lambda _: 9.0, measured_on="x")


def test_every_stage_has_the_price_of_its_machine() -> None:
    compute = ComputeConfig(price_per_hour=36.0, prices={"student_8": 360.0})
    found = [StageEstimate("teacher_16", 100.0), StageEstimate("student_8", 100.0)]
    text = format_estimates(found, price_of=compute.price_of, measured_on="x").splitlines()
    assert [line.split("cost ")[1] for line in text[1:]] == ["1.00", "10.00", "11.00"]
    with pytest.raises(InvalidConfig, match=r"names no stage: 'student8'; did you mean 'student_8'\?"):
        parse_config({"compute": {"prices": {"student8": 1.0}}})


def test_unit_costs_of_a_real_model(tmp_path: Path) -> None:
    base = load_base(write_micro_base(tmp_path / "base", seed=0))
    costs = measure_unit_costs(base, torch.device("cpu"))
    assert set(costs) == {
        *COSTS, "encoder_forward_s", "text_encoder_forward_s", "unet_training_s", "unet_update_s", "small_decoder_training_s",
    }  # fmt: skip
    halves = {"unet_forward_bf16_s", "unet_training_bf16_s", "decoder_forward_bf16_s"}
    assert set(measure_unit_costs(base, torch.device("cpu"), half=True)) == {*costs, *halves}
    assert costs["unet_parameters"] == sum(p.numel() for p in base.unet.parameters())
    assert min(costs.values()) > 0
    assert not any(p.requires_grad for p in base.unet.parameters())
    # The input of the last convolution alone is kept: first width x 16 x 16 floats.
    assert costs["unet_activation_bytes"] > base.unet.config.block_out_channels[0] * 16 * 16 * 4
