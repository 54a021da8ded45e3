"""Which units an iteration skips."""

import pytest
import torch

from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.files.errors import ArchitectureError
from steps.training.batch import Batch
from steps.unet.architecture import list_units
from steps.unet.dropping import SkippingLoss, draw_skipped, drop_probability
from steps.unet.evolved import EvolvedUNet
from tests.factories import TINY_CONFIG, tiny_unet
from tests.steps.evolution.factories import TinyData


def test_probability_rises_linearly_and_stays() -> None:
    values = [drop_probability(i, final=0.1, ramp=4) for i in range(7)]
    assert values == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert drop_probability(0, final=0.1, ramp=0.0) == 0.1


def test_masks_depend_on_iteration_and_seed_alone() -> None:
    units = list_units(EvolvedUNet.from_unet(tiny_unet()).spec, TINY_CONFIG)
    masks = [draw_skipped(units, 0.1, seed=1, iteration=i) for i in range(60)]
    assert masks == [draw_skipped(units, 0.1, seed=1, iteration=i) for i in range(60)]
    assert masks != [draw_skipped(units, 0.1, seed=2, iteration=i) for i in range(60)]
    assert sum(map(len, masks)) / (60 * len(units)) == pytest.approx(0.1, abs=0.02)
    assert draw_skipped(units, 0.0, seed=1, iteration=0) == []
    assert draw_skipped(units, 1.0, seed=1, iteration=0) == [unit.id for unit in units]


def _sampling() -> Sampling:
    schedule = NoiseSchedule.from_config({"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"})
    return Sampling(data=TinyData(), schedule=schedule, caption_dropout=0.1, device=torch.device("cpu"))


def test_loss_skips_during_the_forward_pass_only_and_leaves_skipped_units_without_gradient() -> None:
    unet = EvolvedUNet.from_unet(tiny_unet()).train().requires_grad_(True)
    loss = SkippingLoss(_sampling(), probability=0.5)
    assert loss.ramp == 0.0
    batch = Batch(iteration=7, indices=torch.tensor([0, 5]), seed=3)
    terms = loss(unet, batch)
    terms["loss"].backward()
    assert not unet.skipped
    units = list_units(unet.spec, TINY_CONFIG)
    skipped = {block for unit in draw_and_find(units) for block in unit.blocks}
    assert terms["skipped_units"] == len(draw_and_find(units))
    for block in unet.spec.blocks:
        has_gradient = any(parameter.grad is not None for parameter in unet.block(block).parameters())
        assert has_gradient != (block in skipped), block


def draw_and_find(units: list) -> list:
    """The units that the test above must skip."""
    wanted = draw_skipped(units, 0.5, seed=3, iteration=7)
    return [unit for unit in units if unit.id in wanted]


def test_ranks_with_other_samples_skip_the_same() -> None:
    unet = EvolvedUNet.from_unet(tiny_unet())
    loss = SkippingLoss(_sampling(), probability=0.3)
    counts = {
        float(loss(unet, Batch(iteration=4, indices=torch.tensor([index]), seed=3))["skipped_units"])
        for index in range(3)
    }
    assert len(counts) == 1


def test_a_plain_unet_cannot_skip() -> None:
    loss = SkippingLoss(_sampling(), probability=0.3)
    with pytest.raises(ArchitectureError, match="UNet2DConditionModel"):
        loss(tiny_unet(), Batch(iteration=4, indices=torch.tensor([0]), seed=3))
