"""Both sides of every benchmark against a plain loop compute the same: what is compared is time alone."""

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import full_size_training
from benchmarks.plain.setting import Setting, agreement
from benchmarks.plain_loops import PARTS
from benchmarks.sd15_networks import random_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:Matrix is singular",
    "ignore:The `disp` argument is deprecated:DeprecationWarning",
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:unclosed file:ResourceWarning",  # webdataset leaves the plain loop's shard open
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
SAME = {
    "a": ("training.step_distillation.loss_difference", 1e-4),
    "b": ("training.decoder.loss_difference", 1e-4),
    "c": ("generation.picture_difference", 1),
    "d": ("evaluation.value_difference", 1e-3),
    "e": ("preparing.latent_difference", 1e-2),
}


@pytest.mark.parametrize("part", ["a", "b", "c", pytest.param("d", marks=pytest.mark.long), "e"])
def test_both_sides_compute_the_same(part: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.plain.{PARTS[part]}")
    found = {
        metric.name: metric for metric in module.measure(Setting(tmp_path, quick=True, repeats=1, batch=2))
    }
    name, limit = SAME[part]
    assert 0.0 <= found[name].value <= limit and found[name].n >= 1
    assert [metric for metric in found.values() if metric.name.endswith("speedup")]


@pytest.mark.long
@pytest.mark.parametrize("part", ["f", "g"])
def test_the_other_parts_run(part: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.plain.{PARTS[part]}")
    assert all(
        metric.value > 0.0 for metric in module.measure(Setting(tmp_path, quick=True, repeats=1, batch=2))
    )


def test_sides_that_differ_end_the_benchmark() -> None:
    assert agreement("loss", [(1.0, 1.00005), (2.0, 2.0)], 1e-4).value == pytest.approx(5e-5)
    with pytest.raises(
        SystemExit, match="loss: both sides must compute the same to 0.0001, found a difference"
    ):
        agreement("loss", [(1.0, 1.001)], 1e-4)


@pytest.mark.parametrize("stage", ["velocity_finetuning", "student_16", "decoder_distillation"])
def test_a_full_size_stage_is_the_stages_own_network_and_loss(stage: str) -> None:
    """One micro step each; that a checkpoint continues is what the benchmark itself checks."""
    from steps.training.batch import Batch

    model = full_size_training.network(stage, micro=True).requires_grad_(True)
    loss = full_size_training.loss_of(stage, full_size_training.configuration("fp32"), micro=True)
    terms = loss(model, Batch(0, torch.arange(1), 0))
    terms["loss"].backward()
    assert bool(torch.isfinite(terms["loss"]))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_random_weights_are_those_of_the_published_sizes() -> None:
    """On meta: BK-SDM-Base's table says 580 M, SnapFusion's 759 M and 12.4 M."""
    from benchmarks.sd15_networks import _network

    sizes = {}
    for name in ("base", "bk-sdm-base", "snapfusion-sd15", "small_decoder"):
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in _network(name, False).parameters()) / 1e6
    assert sizes["base"] == pytest.approx(859.5, abs=0.1) and sizes["bk-sdm-base"] == pytest.approx(
        579.4, abs=1.0
    )
    assert sizes["snapfusion-sd15"] == pytest.approx(759.3, abs=0.1)
    assert sizes["small_decoder"] == pytest.approx(12.4, abs=0.05)
    network = random_weights("evolvable", micro=True)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
