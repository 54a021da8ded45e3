"""A frozen teacher's outputs and features: on a linear toy by hand, and on real UNets."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steps.diffusion.prediction import UNetInput
from steps.files.errors import ArchitectureError
from steps.training.batch import Batch
from steps.unet.architecture import remove_unit
from steps.unet.conversion import build
from steps.unet.dropping import SkippingLoss
from steps.unet.evolved import EvolvedUNet
from steps.unet.matching import TeacherMatching
from tests.factories import TINY_CONFIG, tiny_inputs, tiny_unet
from tests.steps.unet.test_dropping import _sampling


class Sampler(nn.Module):
    """A level's resampler that does nothing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        setattr(self, kind, nn.ModuleList([nn.Identity()]))


class Toy(nn.Module):
    """Multiplies by one number per level; with two levels down and one up."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))
        self.down_blocks = nn.ModuleList([Sampler("downsamplers"), nn.Module()])
        self.up_blocks = nn.ModuleList([Sampler("upsamplers"), nn.Module()])
        self.conv_norm_out = nn.Identity()

    def forward(self, z: Tensor, t: Tensor, **_: Any) -> tuple[Tensor]:
        down, up, out = self.factors
        hidden = self.down_blocks[0].downsamplers[0](down * z)  # type: ignore[union-attr, index]
        hidden = self.up_blocks[0].upsamplers[0](up * hidden)  # type: ignore[union-attr, index]
        return (self.conv_norm_out(out * hidden),)


ITEM = UNetInput(*tiny_inputs())


def test_terms_of_a_linear_toy() -> None:
    student, teacher = Toy(2.0, 3.0, 5.0), Toy(1.0, 2.0, 4.0).requires_grad_(False)
    output, terms = TeacherMatching(teacher, 0.5, 10.0)(student, ITEM)
    size = ITEM.z.square().mean()
    torch.testing.assert_close(output, 30.0 * ITEM.z)
    torch.testing.assert_close(terms["outputs"], 22.0**2 * size)
    # Levels end with 2 against 1, 6 against 2, 30 against 8 times z.
    features = ((1 / 1) ** 2 + (4 / 2) ** 2 + (22 / 8) ** 2) / 3
    assert terms["features"].item() == pytest.approx(features, rel=1e-5)
    torch.testing.assert_close(terms["matching"], 0.5 * terms["outputs"] + 10.0 * terms["features"])


def test_a_copy_of_the_teacher_matches_it_exactly_and_a_smaller_student_learns_in_every_level() -> None:
    teacher = tiny_unet().requires_grad_(False)
    matching = TeacherMatching(teacher, 0.0, 1.0)
    same = matching(EvolvedUNet.from_unet(teacher), ITEM)[1]
    assert same["matching"].item() == 0.0
    spec = EvolvedUNet.from_unet(teacher).spec
    for unit in ("down.0.attentions.0", "mid.attentions.0", "down.2.resnets.1+up.1.resnets.0"):
        spec = remove_unit(spec, TINY_CONFIG, unit)
    student = build(spec, teacher).requires_grad_(True)
    matching(student, ITEM)[1]["matching"].backward()
    sizes = {name: p.grad.abs().max() for name, p in student.named_parameters() if p.grad is not None}
    # What lies behind the last level's end has none.
    assert {name for name in dict(student.named_parameters()) if not sizes.get(name, 0.0)} == {
        "conv_norm_out.weight",
        "conv_norm_out.bias",
        "conv_out.weight",
        "conv_out.bias",
    }
    assert not any(len(module._forward_pre_hooks) for module in (*teacher.modules(), *student.modules()))


def test_a_teacher_of_other_levels_is_refused() -> None:
    other = Toy(1.0, 1.0, 1.0)
    del other.down_blocks[0].downsamplers
    other.forward = lambda z, t, **_: (z,)  # type: ignore[method-assign]
    with pytest.raises(ArchitectureError, match="teacher's levels"):
        TeacherMatching(Toy(1.0, 1.0, 1.0), 1.0, 1.0)(other, ITEM)


def test_training_with_a_teacher_adds_its_terms_to_the_original_loss() -> None:
    batch = Batch(iteration=7, indices=torch.tensor([0, 5]), seed=3)
    unet = EvolvedUNet.from_unet(tiny_unet())
    alone = SkippingLoss(_sampling(), probability=0.5)(unet, batch)
    matching = TeacherMatching(tiny_unet(1).requires_grad_(False), 0.5, 0.25)
    terms = SkippingLoss(_sampling(), probability=0.5, matching=matching)(unet, batch)
    assert alone["loss"] == alone["original"] == terms["original"]
    expected = terms["original"] + 0.5 * terms["outputs"] + 0.25 * terms["features"]
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["skipped_units"] == alone["skipped_units"] > 0
