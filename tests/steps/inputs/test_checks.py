"""What every run is refused for, whether or not its stages are cached."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from artifacts_schema.config import SnapFusionConfig, parse_config
from steps.files.errors import BaseModelError, ConfigError, DiskFullError
from steps.inputs import checks as run_checks
from steps.inputs.checks import MICRO_FACTS, check_run, facts_of
from steps.pretraining.micro import write_micro_base

ROOT = Path(__file__).resolve().parents[3]
Usage = namedtuple("Usage", "total used free")


def config(**sections: dict[str, object]) -> SnapFusionConfig:
    return parse_config({"base": {"path": "micro", "warm_start": False}, "data": {"limit": 32}} | sections)


def test_facts_of_a_base_are_read_from_its_files(tmp_path: Path) -> None:
    facts = facts_of(ROOT / "assets/base")
    assert (facts.train_timesteps, facts.has_safety_checker) == (1000, False)
    assert 2 * facts.unet_parameters == pytest.approx(  # stored in float16
        (ROOT / "assets/base/unet/diffusion_pytorch_model.safetensors").stat().st_size, rel=0.01
    )
    micro = facts_of(write_micro_base(tmp_path / "base"))
    assert micro.unet_parameters <= MICRO_FACTS.unet_parameters
    assert (micro.train_timesteps, micro.has_safety_checker) == (1000, False)


def test_a_large_base_in_several_files_is_counted_once(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {}, "a": {"shape": [3, 5]}, "b": {"shape": []}}).encode()
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"num_train_timesteps": 500}')
    for name in ("-00001-of-00002", "-00002-of-00002", ".fp16"):
        path = tmp_path / f"unet/diffusion_pytorch_model{name}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    facts = facts_of(tmp_path)
    assert (facts.unet_parameters, facts.train_timesteps) == (32, 500)


def test_damaged_weights_of_the_base_are_named(tmp_path: Path) -> None:
    base = write_micro_base(tmp_path / "base")
    (base / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{dam}")
    with pytest.raises(BaseModelError, match=r"unet/diffusion_pytorch_model\.safetensors cannot be read"):
        facts_of(base)


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused_before_room_is_made_for_it(
    tmp_path: Path, length: int
) -> None:
    base = write_micro_base(tmp_path / "base")
    path = base / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(
        BaseModelError, match=rf"safetensors cannot be read: its header claims {length} bytes"
    ):
        facts_of(base)


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(DiskFullError, match=r"this run's store .* needs about .* 1\.0 MiB are free"):
        check_run(config(), ROOT, tmp_path)


def test_what_the_store_holds_already_needs_no_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = parse_config({})
    free = 4 * run_checks.STORE_COPIES * facts_of(ROOT / "assets/base").unet_parameters // 2 + (1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, free))
    with pytest.raises(DiskFullError):
        check_run(large, ROOT, tmp_path)
    with (tmp_path / "object").open("wb") as file:
        file.truncate(free)  # takes no room itself
    check_run(large, ROOT, tmp_path)


def test_grace_period_the_disk_cannot_meet_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checks, "_write_speed", lambda _: 1000.0)
    with pytest.raises(ConfigError, match=r"more than compute\.sigterm_grace_s = 10"):
        check_run(config(), ROOT, tmp_path)


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ({"program_check": {"timesteps": [999, 1000]}}, r"names \[1000\], the base's schedule ends at 999"),
        ({"components": ["unet", "safety_checker"]}, r"names safety_checker, the base .* has none"),
    ],
)
def test_export_that_must_fail_is_refused(export: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(parse_config({"coreml_export": export}), ROOT, tmp_path)


def given(architecture: object, **run: object) -> SnapFusionConfig:
    return parse_config(
        {
            "base": {"path": "assets/base"},
            "run": run,
            "architecture_evolution": {"architecture": architecture},
        }
    )


def test_an_architecture_of_another_base_is_refused_before_any_work(tmp_path: Path) -> None:
    """Not in the middle of the run, after robust training. The paper's fits the embedded base."""
    check_run(given("snapfusion-sd15"), ROOT, tmp_path)
    other = {"name": "other", "base_config": "0" * 64, "stages": []}
    message = r"architecture is none of the base assets/base: .* belongs to the base config 000000000000"
    with pytest.raises(ConfigError, match=message):
        check_run(given(other), ROOT, tmp_path)
    skipped = ["robust_training", "architecture_evolution"]
    check_run(given(other, skip=skipped), ROOT, tmp_path)  # nobody builds it
