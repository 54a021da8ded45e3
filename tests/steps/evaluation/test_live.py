"""Pictures of a training that goes on: the same captions and noise, and nothing of the training changes."""

from pathlib import Path

import torch

from steps.evaluation.live import ValidationPictures
from tests.factories import stage_context, two_level_base
from tests.steps.stages.test_real_pictures import Pictures, stand_in


def test_pictures_depend_on_the_weights_alone(tmp_path: Path) -> None:
    base = two_level_base(tmp_path / "base")
    painter = ValidationPictures(stand_in(Pictures(), base=base), stage_context(tmp_path, "student_8"))
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    state = torch.get_rng_state()
    first = painter.draw(base.unet)
    assert first.startswith(b"\x89PNG") and painter.draw(base.unet) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())
    with torch.no_grad():
        next(base.unet.parameters()).add_(1.0)
    assert painter.draw(base.unet) != first
    assert len(set(painter.captions())) == 4
