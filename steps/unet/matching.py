"""A frozen teacher beside a training: its outputs, and its features at the ends of the levels (BK-SDM, arXiv 2305.15798).

A level ends where the next thing is a resampler or the output's normalisation. These modules are in every UNet of the
family, whole or evolved, are never removed, and keep the base's widths: so a student with fewer blocks can be held
against the whole UNet level by level.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steps.diffusion.prediction import UNetInput, predict
from steps.files.errors import ArchitectureError

_AFTER_A_LEVEL = re.compile(
    r"(down_blocks\.\d+\.downsamplers\.0|up_blocks\.\d+\.upsamplers\.0|conv_norm_out)"
)


@dataclass(frozen=True)
class TeacherMatching:
    """`output_weight` * |v_hat - v_teacher|^2 + `feature_weight` * mean over levels of |f - f_teacher|^2 / |f_teacher|^2.

    BK-SDM adds up absolute squares; relative ones let one weight fit levels of any magnitude (ours).
    """

    teacher: nn.Module
    output_weight: float
    feature_weight: float

    def __call__(self, model: nn.Module, item: UNetInput) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's float32 output (n, c, h, w) for `item`, and named terms, of which `matching` is the sum to optimise.

        Raises ArchitectureError when the two have other levels.
        """
        with _level_ends(model) as own:
            output = predict(model, item)
        with torch.no_grad(), _level_ends(self.teacher) as theirs:
            target = predict(self.teacher, item)
        if own.keys() != theirs.keys() or not own:
            raise ArchitectureError(f"expected the teacher's levels {sorted(theirs)}, found {sorted(own)}")
        outputs = (output - target).square().mean()
        features = torch.stack([_relative(own[name], theirs[name]) for name in own]).mean()
        matching = self.output_weight * outputs + self.feature_weight * features
        return output, {"matching": matching, "outputs": outputs, "features": features}


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    found, expected = found.float(), expected.float()
    return (found - expected).square().mean() / expected.square().mean().clamp(min=1e-12)


@contextmanager
def _level_ends(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What each level of the UNet, bare or behind a data-parallel wrapper, gives in the calls within the block."""
    found: dict[str, Tensor] = {}
    unet = getattr(model, "module", model)
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: found.__setitem__(name, inputs[0]))
        for name, module in unet.named_modules()
        if _AFTER_A_LEVEL.fullmatch(name)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
