"""A plan is made from shapes alone, for hardware that need not be here; what cannot fit is refused with what would."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.config import SnapFusionConfig, parse_config
from flows import costs, planning
from flows.commands import plan as command
from flows.planning import Plan, planned
from flows.presets import read_source
from steps.files.errors import ConfigError
from steps.latency.counted import SD15, counted
from steps.latency.hardware import TABLE, Hardware, hardware_named

MICRO = {"base": {"path": "micro", "warm_start": False}, "student_8": {"training": {"iterations": 10}}}
FAST = Hardware("fast", 64 * 2**30, 1e14, 1e13, "stated")


def stage(plan: Plan, name: str) -> Any:
    return next(item for item in plan.stages if item.stage == name)


def plan_of(**sections: Any) -> Plan:
    return planned(parse_config(MICRO | sections), FAST)


def test_stable_diffusion_is_counted_from_its_shapes() -> None:
    found = counted(SD15)
    assert found["unet_parameters"] == 859_520_964
    assert (found["unet_macs"], found["decoder_macs"]) == (
        costs.SD15_MACS["unet"],
        costs.SD15_MACS["decoder"],
    )
    assert (found["image_size"], found["units"]) == (512, costs.SD15["units"])


def test_every_stage_says_steps_pictures_memory_and_time() -> None:
    plan = plan_of()
    trained = stage(plan, "student_8")
    assert (trained.steps, trained.pictures) == (10, 320)
    assert trained.memory_bytes > 4 * 4 * 3000
    assert trained.seconds > 0
    assert trained.cost is None
    start = stage(plan, "start")
    assert (start.steps, start.pictures, start.memory_bytes) == (None, 3953, None)
    assert stage(plan, "evaluation").pictures == 64 * 8
    assert plan.refused == ""


def test_twice_the_speed_takes_half_the_time_and_a_price_gives_costs() -> None:
    slow, fast = (
        planned(parse_config(MICRO), Hardware("x", 2**40, rate, rate, "stated"), price=3.6)
        for rate in (1e12, 2e12)
    )
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert stage(slow, "student_8").cost == pytest.approx(stage(slow, "student_8").seconds / 1000)


def test_more_pictures_cost_preparation_storage_and_traffic_and_no_training() -> None:
    few, many = (planned(parse_config(MICRO), FAST, pictures=count) for count in (1000, 10_000))
    for name in ("seconds", "pictures"):
        assert getattr(stage(many, "start"), name) == pytest.approx(10 * getattr(stage(few, "start"), name))
    grown = stage(many, "start").storage_bytes - stage(few, "start").storage_bytes
    assert grown == pytest.approx(9000 * few.bytes_per_picture)
    assert stage(many, "student_8").seconds == stage(few, "student_8").seconds
    assert stage(many, "student_8").traffic_bytes > stage(few, "student_8").traffic_bytes


def test_processes_share_the_time_and_not_the_cost() -> None:
    batch = {name: {"training": {"batch_size": 32}} for name in ("student_8",)}
    one, two = (
        planned(parse_config(MICRO | batch | {"compute": {"processes": count}}), FAST, price=1.0)
        for count in (1, 2)
    )
    assert stage(two, "robust_training").seconds < 0.6 * stage(one, "robust_training").seconds
    assert stage(two, "robust_training").cost == pytest.approx(stage(one, "robust_training").cost, rel=0.2)


def test_shards_are_counted_whether_they_are_there_or_not() -> None:
    data = {"source": "webdataset", "shards": ["away/{0000..0099}.tar", "more.tar"]}
    plan = plan_of(data=data)
    assert plan.pictures == 101_000
    assert any("101 shards of 1,000" in line for line in plan.assumed)


def test_a_base_that_is_not_here_is_taken_for_stable_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_memory", lambda *_: {})
    monkeypatch.setattr("steps.latency.fit.check_fits", lambda *_, **__: [])
    plan = planned(parse_config(read_source("sd15")), TABLE["a100-80gb"])
    assert any("Stable Diffusion 1.5, as models/" in line for line in plan.assumed)
    assert stage(plan, "teacher_16").pictures == 50_000 * 2048
    # Two passes and two and a tenth with a backward pass, of 0.4 TMAC each, at 47 TFLOP/s; and the checks.
    passes = 2.2 + 3 * 2.1
    expected = 50_000 * 2048 * passes * 2 * costs.SD15_MACS["unet"] / (312e12 * 0.15)
    assert stage(plan, "teacher_16").seconds == pytest.approx(expected, rel=0.01)


def test_what_cannot_fit_is_refused_with_the_settings_that_would() -> None:
    training = {"training": {"batch_size": 512}}
    plan = planned(
        parse_config(MICRO | {"robust_training": training}), Hardware("small", 2**29, 1e12, 1e12, "")
    )
    assert "robust_training: training needs about" in plan.refused
    assert "set robust_training.training." in plan.refused


def test_on_this_machine_stages_beside_each_other_have_their_own_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = {
        "unet_forward_s": 0.01, "decoder_forward_s": 0.01, "unet_activation_bytes": 0.0, "decoder_activation_bytes": 0.0,
        "unet_parameters": 1.0, "decoder_parameters": 1.0, "units": 3.0, "task_s": 0.0,
    }  # fmt: skip
    twice = alone | {"unet_forward_s": 0.02, "decoder_forward_s": 0.02}
    monkeypatch.setattr(costs, "costs_here", lambda *_: costs.CostsHere(alone, twice, "measured"))
    here = planned(parse_config(MICRO), None)
    monkeypatch.setattr(costs, "costs_here", lambda *_: costs.CostsHere(alone, alone, "measured"))
    quiet = planned(parse_config(MICRO), None)
    for name, factor in (("velocity_finetuning", 1), ("student_8", 1), ("teacher_16", 2), ("evaluation", 2)):
        assert stage(here, name).seconds == pytest.approx(factor * stage(quiet, name).seconds)


def test_a_model_that_is_not_here_is_scaled_by_its_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from steps.pretraining.micro import write_micro_base

    known = counted(planning._shapes(parse_config(MICRO))[0])
    measured = dict.fromkeys(
        ("unet_forward_s", "unet_training_s", "unet_update_s", "decoder_forward_s", "small_decoder_training_s",
         "encoder_forward_s", "task_s", "evolved_factor"), 1.0,
    )  # fmt: skip
    monkeypatch.setattr(costs, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(costs, "max_workers", lambda cores: 1)
    monkeypatch.setattr(costs, "_costs_of", lambda folder: measured)
    away = parse_config({"base": {"path": "away"}})
    with pytest.raises(ConfigError, match="neither .* is here to be measured; name --hardware"):
        costs.costs_here(away, known)
    write_micro_base(tmp_path / "assets/base")
    found = costs.costs_here(away, known | {"unet_macs": 7 * known["unet_macs"]})
    assert found.alone["unet_training_s"] == pytest.approx(7.0)
    assert found.alone["decoder_forward_s"] == pytest.approx(1.0)
    assert "of the included model" in found.basis


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a100", "did you mean 'a100-[48]0gb'"),
        ("H100", "did you mean 'h100-80gb'"),
        ("abacus!", "known are a100-40gb"),
    ],
)
def test_unknown_hardware_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hardware_named(name)


def test_hardware_may_be_stated() -> None:
    found = hardware_named("mine", tflops=100, share=0.25, memory_gib=48)
    assert (found.bf16, found.memory_bytes) == (25e12, 48 * 2**30)
    assert hardware_named("l4-24gb", memory_gib=12).memory_bytes == 12 * 2**30


def test_the_command_prints_a_table_or_json_and_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[SnapFusionConfig, Any]] = []

    def made(config: SnapFusionConfig, hardware: Any, **given: Any) -> Plan:
        seen.append((config, given))
        return plan

    plan = plan_of()
    monkeypatch.setattr(command, "planned", made)
    arguments = ["--preset", "smoke", "--hardware", "l4-24gb", "--pictures", "400000000"]
    assert command.main(arguments) == 0
    assert seen[0][1] == {"pictures": 400_000_000, "price": None}
    said = capsys.readouterr().out
    assert "student_8 " in said and "sum, one after the other" in said and "MiB a picture" in said
    assert command.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["stage"] == "start"
    plan = Plan("x", "y", 1, 1.0, plan.stages, (), refused="memory does not suffice")
    assert command.main(arguments) == 1
    assert "error: memory does not suffice" in capsys.readouterr().err
    assert command.main(["--hardware", "h100"]) == 1
    assert "did you mean 'h100-80gb'" in capsys.readouterr().err
    assert command.main([*arguments, "--pictures", "0"]) == 1
    assert "--pictures must be above 0, found 0" in capsys.readouterr().err


def test_streamed_data_are_small_and_read_again_where_the_cache_cannot_hold_them() -> None:
    shards = {"data": {"source": "webdataset", "shards": ["{00000..00099}.tar"], "held_out_fraction": 0.01}}
    few, many = (
        planned(parse_config(MICRO | shards | {"store": {"cache_gib": size}}), FAST, pictures=100)
        for size in (1e-6, 1.0)
    )
    assert many.bytes_per_picture < 0.6 * plan_of().bytes_per_picture
    again, once = (stage(plan, "student_8") for plan in (few, many))
    assert again.pictures == 320  # of a hundred
    assert again.traffic_bytes - once.traffic_bytes == pytest.approx(220 * many.bytes_per_picture)
