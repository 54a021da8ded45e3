"""Memory from shapes: equal to what really happens, refused where it cannot fit, with settings that do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from artifacts_schema.config import SnapFusionConfig, load_config_file, parse_config
from artifacts_schema.parts import STARTS_FROM
from steps.files.errors import ConfigError
from steps.latency import fit
from steps.latency.bounds import RESERVE, host_memory, passes, surely_fits
from steps.latency.fit import Shapes, check_fits, needed, needs, propose
from steps.latency.memory import StepMemory, step_bytes, unet_step
from tests.factories import TINY_CONFIG, tiny_unet
from tests.steps.latency.test_rehearsed import COSTS

CONFIGS = Path(__file__).parents[3] / "configs"
GIB = float(1 << 30)
# Of Stable Diffusion 1.5, as `unet_step` tells them (4 CPU-seconds each): test_stable_diffusion_fits_into_24_gib holds them.
SD15 = {
    ("fp32", False): (1098.6, 1631.6), ("fp32", True): (3236.3, 250.8),
    ("bf16", False): (2188.4, 813.8), ("bf16", True): (3242.7, 125.9),
}  # fmt: skip
PARAMETERS = 859_520_964
SHAPES = Shapes(unet={"sample_size": 64}, vae={}, tokens=77)


def test_a_linear_layers_step_is_counted_by_hand() -> None:
    """Forward keeps nothing but its result; backward makes the gradients of result, weight and bias."""
    model = nn.Linear(100, 50)
    x = torch.zeros(10, 100)
    peak = step_bytes(model, lambda: model(x))
    result, weight = 4 * 10 * 50, 4 * 100 * 50
    assert weight + result <= peak <= weight + 5 * result + 1000


class _Deep(nn.Module):
    """Blocks whose inside is larger than their input."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 800), nn.GELU(), nn.Linear(800, 8)) for _ in range(6)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_what_is_kept_of_every_block_counts() -> None:
    model = _Deep()
    found = step_bytes(model, lambda: model(torch.zeros(100, 8)))
    assert found > 6 * 2 * 4 * 100 * 800  # GELU's input and output in each


def test_fake_tensors_need_what_real_ones_need() -> None:
    """And recomputation less, in either."""
    told = {
        recompute: unet_step(dict(TINY_CONFIG), tokens=7, precision="fp32", recompute=recompute)
        for recompute in (False, True)
    }
    unet = tiny_unet()
    assert told[False].parameters == sum(p.numel() for p in unet.parameters())

    def forward() -> Tensor:
        sample: Tensor = unet(torch.zeros(4, 4, 16, 16), torch.zeros(4), torch.zeros(4, 7, 12)).sample
        return sample

    for recompute, step in told.items():
        real = step_bytes(unet, forward, recompute=recompute)
        assert step.of(4) == pytest.approx(real, rel=0.1)
    assert told[True].of(8) < 0.5 * told[False].of(8)


@pytest.fixture
def sd15(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of Stable Diffusion 1.5 without tracing them again."""

    def step(_: dict[str, Any], *, precision: Any, recompute: bool, **__: Any) -> StepMemory:
        fixed, slope = SD15[precision, recompute]
        return StepMemory(PARAMETERS, fixed * 2**20, slope * 2**20)

    monkeypatch.setattr(fit, "unet_step", step)
    monkeypatch.setattr(fit, "decoder_step", lambda _, **__: StepMemory(12_000_000, 1e8, 1e9))


def config(**training: Any) -> SnapFusionConfig:
    return parse_config({"teacher_16": {"training": training}})


@pytest.mark.usefixtures("sd15")
def test_the_average_on_the_host_is_one_copy_of_the_weights_less() -> None:
    there, here = (
        needed("teacher_16", found, SHAPES, found.teacher_16.training)
        for found in (config(ema_on_host=False), config(ema_on_host=True))
    )
    assert there - here == pytest.approx(RESERVE * 4 * PARAMETERS)


@pytest.mark.usefixtures("sd15")
def test_a_preset_for_24_gb_fits_and_that_for_80_gb_does_not() -> None:
    small, large = (load_config_file(CONFIGS / f"{name}.toml") for name in ("sd15_24gb", "sd15_1gpu"))
    found = check_fits(small, SHAPES, 23.6 * GIB, where="the GPU")
    assert {need.stage for need in found} == set(STARTS_FROM)
    check_fits(large, SHAPES, 79.1 * GIB, where="the GPU")
    with pytest.raises(
        ConfigError, match="memory does not suffice:\n  velocity_finetuning: training needs about"
    ):
        check_fits(large, SHAPES, 23.6 * GIB, where="the GPU")


@pytest.mark.usefixtures("sd15")
def test_what_is_proposed_fits_and_trains_on_as_many_samples() -> None:
    large = load_config_file(CONFIGS / "sd15_1gpu.toml")
    advice = propose("teacher_16", large, SHAPES, 23.6 * GIB, on_gpu=True)
    assert "teacher_16.training.gradient_checkpointing = true" in advice
    changes = {
        item.split(" = ")[0].rpartition(".")[2]: item.split(" = ")[1].split(" ")[0]
        for item in advice.removeprefix("set ").split(", ")
    }
    changes = {
        name: value == "true" if value in ("true", "false") else int(value) for name, value in changes.items()
    }
    after = large.teacher_16.training.model_copy(update=changes)
    assert needed("teacher_16", large, SHAPES, after) <= 23.6 * GIB
    before = large.teacher_16.training
    assert after.batch_size * after.accumulation == before.batch_size * before.accumulation
    assert "not even one sample" in propose("teacher_16", large, SHAPES, 8 * GIB, on_gpu=True)
    assert "ema_on_host" not in propose("teacher_16", large, SHAPES, 30 * GIB, on_gpu=False)


@pytest.mark.usefixtures("sd15")
def test_processes_share_a_batch_and_what_is_proposed_they_can_share() -> None:
    values = load_config_file(CONFIGS / "sd15_1gpu.toml").model_dump(mode="json")
    four = parse_config(values | {"compute": values["compute"] | {"processes": 4}})
    one = load_config_file(CONFIGS / "sd15_1gpu.toml")
    quarter = one.teacher_16.training.model_copy(
        update={"batch_size": one.teacher_16.training.batch_size // 4}
    )
    assert needed("teacher_16", four, SHAPES, four.teacher_16.training) == needed(
        "teacher_16", one, SHAPES, quarter
    )
    advice = propose("robust_training", four, SHAPES, 20 * GIB, on_gpu=True)
    assert "gradient_checkpointing = true" in advice
    sizes = [int(part.split("batch_size = ")[1].split(",")[0]) for part in [advice] if "batch_size" in part]
    assert all(size % 4 == 0 for size in sizes)


def test_stages_that_are_skipped_need_nothing(sd15: None) -> None:
    found = needs(parse_config({"run": {"skip": ["decoder_distillation"]}}), SHAPES)
    assert "decoder_distillation" not in {need.stage for need in found}


def test_a_guided_sample_goes_through_three_times() -> None:
    found = parse_config({"step_distillation": {"gamma": 0.0}})
    assert [
        passes(stage, SnapFusionConfig()) for stage in ("robust_training", "student_16", "student_8")
    ] == [1, 2, 3]
    assert [passes(stage, found) for stage in ("student_16", "student_8")] == [1, 2]


def test_where_plenty_is_left_nothing_is_traced() -> None:
    assert surely_fits(SnapFusionConfig(), COSTS, 4 * GIB)
    assert not surely_fits(SnapFusionConfig(), COSTS, 0.1 * GIB)
    assert 1e8 < host_memory() < 1e14


@pytest.mark.long
def test_stable_diffusion_fits_into_24_gib() -> None:
    """The numbers above, told from its shapes."""
    shape = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    for (precision, recompute), (fixed, slope) in SD15.items():
        found = unet_step(shape, tokens=77, precision=precision, recompute=recompute)  # type: ignore[arg-type]
        assert found.parameters == PARAMETERS
        assert found.fixed == pytest.approx(fixed * 2**20, rel=0.02)
        assert found.per_sample == pytest.approx(slope * 2**20, rel=0.02)
