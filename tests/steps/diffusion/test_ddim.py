"""One walk of the grid: sampler, scheduler, losses and the check of the bundle go the same way, bit for bit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from steps.diffusion.losses import DistillationLoss, Example, Sampling
from steps.diffusion.parameterization import PredictionType, ddim_step
from steps.diffusion.prediction import UNetInput
from steps.diffusion.sampler import sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.diffusion.scheduler import GridDDIMScheduler
from steps.export.bundle_run import Bundle
from tests.steps.diffusion.fakes import SD_SCHEDULE, FakeData, LinearUNet

SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
NOISE = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
TEXT = torch.full((1, 3, 5), 0.2)
W = 3.0
GRIDS = pytest.mark.parametrize("steps", [8, 16, 32, 14])  # 1000 is a multiple of the first alone


def sample(unet: LinearUNet, steps: int, kind: PredictionType) -> Tensor:
    return sample_latents(
        unet,
        SCHEDULE,
        noise=NOISE,
        embeddings=TEXT,
        empty_embedding=torch.zeros_like(TEXT),
        steps=steps,
        guidance_scale=W,
        prediction_type=kind,
    )


def guided(z: Tensor, gain: float = 0.3) -> Tensor:
    """What LinearUNet says of z under TEXT, guided."""
    conditional, unconditional = (torch.tensor(gain) + mean for mean in (TEXT.mean(), torch.tensor(0.0)))
    return W * (conditional * z) - (W - 1.0) * (unconditional * z)


@GRIDS
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_scheduler_goes_where_the_sampler_goes(steps: int, kind: PredictionType) -> None:
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type=kind)
    scheduler.set_timesteps(steps)
    z = NOISE
    for t in scheduler.timesteps:
        z = scheduler.step(guided(z), t, z).prev_sample
    assert torch.equal(z, sample(LinearUNet(), steps, kind))


@GRIDS
def test_teacher_goes_where_the_sampler_goes(steps: int) -> None:
    """The student's points are every second one of the teacher's grid of `steps` steps."""
    sampled = LinearUNet()
    end = sample(sampled, steps, "v_prediction")
    path = [call.z[:1] for call in sampled.calls] + [end]
    for point in range(steps // 2):
        teacher = LinearUNet()
        loss = DistillationLoss(
            teacher=teacher,
            sampling=Sampling(FakeData(), SCHEDULE, 0.0, torch.device("cpu")),
            student_steps=steps // 2,
            cfg_probability=0.0,
            cfg_range=(W, W),
            gamma=0.0,
        )
        t = loss.student_grid[[point]]
        alpha, sigma, z = SCHEDULE.alpha(t), SCHEDULE.sigma(t), path[2 * point]
        start = Example(NOISE, NOISE, UNetInput(z, t, TEXT), alpha, sigma)
        x = loss.teacher_target(start, torch.tensor([point]), torch.full((1, 1, 1, 1), W))
        assert [int(call.t[0]) for call in teacher.calls] == SCHEDULE.grid(steps)[2 * point :][:2].tolist()
        assert torch.equal(teacher.calls[1].z[:1], path[2 * point + 1])
        t_end = SCHEDULE.grid_to_clean(steps)[[2 * point + 2]]
        landed = ddim_step(
            x=x,
            eps=(z - alpha * x) / sigma,
            alpha_next=SCHEDULE.alpha(t_end),
            sigma_next=SCHEDULE.sigma(t_end),
        )
        torch.testing.assert_close(landed, path[2 * point + 2], rtol=1e-4, atol=1e-4)


class Programs:
    """A bundle's programs: the UNet is LinearUNet, folded where it predicts the velocity."""

    inputs = {"sample": (2, *NOISE.shape[1:]), "input_ids": (1, 3)}  # noqa: RUF012

    def __init__(self, kind: PredictionType) -> None:
        self.kind = kind

    def run(self, inputs: dict[str, Tensor], *, rounded: bool) -> dict[str, Tensor]:
        if "input_ids" in inputs:
            return {"last_hidden_state": inputs["input_ids"][..., None].expand(-1, -1, 5)}
        text = inputs["encoder_hidden_states"].squeeze(2).transpose(1, 2)
        z, t = inputs["sample"], inputs["timestep"].long()
        with torch.no_grad():
            output = LinearUNet()(z, t, text, return_dict=False)[0]
        if self.kind == "v_prediction":
            output = SCHEDULE.sigma(t) * z + SCHEDULE.alpha(t) * output
        return {"noise_pred": output}


def bundle(steps: int, kind: PredictionType) -> Bundle:
    manifest: Any = SimpleNamespace(
        schedule=SD_SCHEDULE, timesteps=SCHEDULE.grid(steps).tolist(), guidance_scale=W
    )
    programs: Any = dict.fromkeys(("text_encoder", "unet", "vae_decoder"), Programs(kind))
    tokenizer: Any = lambda texts, **_: SimpleNamespace(  # noqa: E731
        input_ids=torch.stack([TEXT[0, :, 0] * bool(text) for text in texts])
    )
    tokenizer.model_max_length = 3
    return Bundle(manifest, tokenizer, programs)


@GRIDS
def test_bundle_goes_where_the_sampler_goes(steps: int) -> None:
    assert torch.equal(bundle(steps, "epsilon").sample("a", NOISE), sample(LinearUNet(), steps, "epsilon"))
    # The noise made of the velocity in the program, and the velocity's x made of that noise, are rounded once more.
    velocity = bundle(steps, "v_prediction").sample("a", NOISE)
    torch.testing.assert_close(velocity, sample(LinearUNet(), steps, "v_prediction"), rtol=1e-3, atol=1e-4)


def test_half_precision_stays_what_it_is() -> None:
    """In a pipeline of float16 models the latents stay float16."""
    scheduler = GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type="v_prediction")
    scheduler.set_timesteps(8)
    result = scheduler.step(NOISE.half(), 999, NOISE.half())
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == torch.float16
