"""A student that is told w: at its start the UNet itself, then another one for every w."""

import torch

from steps.ablation.conditioned import ConditionedLoss, ConditionedUNet
from steps.diffusion.losses import Sampling
from steps.diffusion.schedule import NoiseSchedule
from steps.training.batch import Batch
from tests.factories import tiny_data, two_level_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE


def test_it_starts_as_the_unet_and_learns_w() -> None:
    unet = two_level_unet()
    student = ConditionedUNet(unet)
    z, t, text = torch.ones(2, 4, 8, 8), torch.tensor([10, 900]), torch.ones(2, 3, 5)
    student.set_guidance(torch.tensor([3.0, 9.0]))
    asked = {"encoder_hidden_states": text, "return_dict": False}
    with torch.no_grad():
        assert torch.equal(student(z, t, **asked)[0], unet(z, t, **asked)[0])
    loss = ConditionedLoss(
        teacher=unet,
        sampling=Sampling(tiny_data(), NoiseSchedule.from_config(SD_SCHEDULE), 0.0, torch.device("cpu")),
        student_steps=2,
        cfg_probability=1.0,
        cfg_range=(2.0, 5.0),
        gamma=0.0,
        teacher_steps=8,
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    batch = Batch(indices=torch.arange(4), seed=0, iteration=0)
    loss(student, batch)["loss"].backward()
    optimizer.step()
    with torch.no_grad():
        outputs = []
        for w in (1.0, 9.0):
            student.set_guidance(torch.tensor([w]))
            outputs.append(student(z, t, **asked)[0])
    assert not torch.equal(*outputs)
    assert "time_embedding.inner" not in dict(unet.named_modules())  # the teacher is as it was
