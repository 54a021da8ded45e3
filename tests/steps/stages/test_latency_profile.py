"""The stage `latency_profile` on a miniature base."""

from pathlib import Path

import pytest
import torch

from artifacts_schema.latency import LatencyTable
from artifacts_schema.stage_configs import LatencyProfileConfig
from steps.files.errors import ConfigError, LatencyTableError
from steps.stages import latency_profile
from steps.unet.blocks import full_spec, input_shapes, list_blocks, normalise
from tests.factories import TINY_CONFIG, context, tiny_base


@pytest.mark.parametrize("backend", ["torch-cpu", "macs"])
def test_every_block_has_a_row_at_its_true_shapes(backend: str, tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend=backend, repeats=3, warmup=1, max_unexplained=0.9)
    table = latency_profile.profile(tiny_base(), config, context(tmp_path))
    assert set(full_spec(TINY_CONFIG).blocks) < set(table.rows)
    for block in list_blocks(TINY_CONFIG):
        expected = input_shapes(block, normalise(TINY_CONFIG), batch=2, latent_size=(16, 16), tokens=7)
        assert table.rows[block.id].input_shapes[: len(expected)] == expected, block.id
    assert {"unet", "text_encoder", "decoder", "conv_in", "conv_out", "time_embedding"} < set(table.rows)
    assert {row.latency.n for row in table.rows.values()} == {3 if backend == "torch-cpu" else 1}
    assert table.threads == (torch.get_num_threads() if backend == "torch-cpu" else 0)
    shares = table.shares()
    assert sum(share["time"] for share in shares.values()) == pytest.approx(1.0)
    assert sum(share["parameters"] for share in shares.values()) == pytest.approx(1.0)
    assert LatencyTable.from_json(table.to_json()) == table


def test_without_a_gpu_none_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        latency_profile.profile(tiny_base(), LatencyProfileConfig(backend="torch-cuda"), context(tmp_path))


def test_counting_is_deterministic_and_explains_everything(tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend="macs")
    first, second = (
        latency_profile.profile(tiny_base(seed=seed), config, context(tmp_path)) for seed in (0, 1)
    )
    assert first.identity() == second.identity()
    assert first.explained == 1.0


def test_a_table_of_another_base_is_refused(tmp_path: Path) -> None:
    config = LatencyProfileConfig(backend="macs")
    path = tmp_path / "table.json"
    path.write_text(latency_profile.profile(tiny_base(), config, context(tmp_path)).to_json())
    imported = LatencyProfileConfig(backend="macs", table=str(path))
    assert latency_profile.profile(tiny_base(), imported, context(tmp_path)).whole > 0
    with pytest.raises(LatencyTableError, match="measured with model"):
        latency_profile.profile(tiny_base(block_out_channels=(8, 16, 16, 16)), imported, context(tmp_path))
    with pytest.raises(LatencyTableError, match="backend"):
        device = LatencyProfileConfig(backend="device", table=str(path))
        latency_profile.profile(tiny_base(), device, context(tmp_path))


def test_profiling_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base = tiny_base()
    base.unet.train()
    config = LatencyProfileConfig(repeats=1, warmup=1, max_unexplained=0.9)
    latency_profile.profile(base, config, context(tmp_path))
    assert base.unet.training
    assert not any(module._forward_hooks for module in base.unet.modules())
