"""The sampler: equal to a plain StableDiffusionPipeline, whatever the batch size."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from steps.diffusion.sampler import decode_latents, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.diffusion.scheduler import GridDDIMScheduler
from steps.unet.small_decoder import SmallDecoder, with_decoder
from tests.factories import LATENT_SHAPE, Shown, tiny_vae, two_level_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE, LinearUNet

# diffusers' DPM scheduler hands tensors to numpy 2 the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(5, *LATENT_SHAPE, generator=GENERATOR)
EMBEDDINGS = torch.randn(5, 3, 5, generator=GENERATOR)
EMPTY = torch.randn(1, 3, 5, generator=GENERATOR)


def sample(unet: torch.nn.Module, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {
        "noise": NOISE,
        "embeddings": EMBEDDINGS,
        "empty_embedding": EMPTY,
        "steps": 4,
        "guidance_scale": 3.0,
        "prediction_type": "v_prediction",
    }
    return sample_latents(unet, SCHEDULE, **(settings | changes))


def pipeline(vae: Any, prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=two_level_unet(),
        scheduler=GridDDIMScheduler.for_base(SD_SCHEDULE, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, *, steps: int, guidance_scale: float, output: str) -> Any:
    return pipe(
        prompt_embeds=EMBEDDINGS,
        negative_prompt_embeds=EMPTY.expand(len(EMBEDDINGS), -1, -1),
        latents=NOISE,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type=output,
    ).images


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "guidance_scale"), [(8, 5.0), (16, 1.0)])
def test_ddim_equals_a_plain_pipeline_with_our_scheduler(
    prediction_type: str, steps: int, guidance_scale: float
) -> None:
    pipe = pipeline(tiny_vae(), prediction_type)
    expected = draw(pipe, steps=steps, guidance_scale=guidance_scale, output="latent")
    ours = sample(
        two_level_unet(), steps=steps, guidance_scale=guidance_scale, prediction_type=prediction_type
    )
    scale = expected.abs().max().item()
    torch.testing.assert_close(ours / scale, expected / scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_batches_do_not_change_the_result(sampler: str) -> None:
    together = sample(two_level_unet(), sampler=sampler)
    shown = Shown()
    apart = sample(two_level_unet(), sampler=sampler, batch_size=2, progress=shown)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert shown.done == [2, 4, 5]


def test_both_branches_take_one_call_and_no_guidance_takes_half() -> None:
    unet = LinearUNet()
    sample(unet, steps=2)
    assert [len(call.z) for call in unet.calls] == [10, 10]
    assert torch.equal(unet.calls[0].embeddings[:5], EMPTY.expand(5, -1, -1))
    unet = LinearUNet()
    sample(unet, steps=2, guidance_scale=1.0)
    assert [len(call.z) for call in unet.calls] == [5, 5]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_dpm_and_ddim_agree_with_many_steps(prediction_type: str) -> None:
    """Both solve the same equation: more steps bring them together."""

    def difference(steps: int) -> float:
        a, b = (
            sample(LinearUNet(), steps=steps, sampler=name, prediction_type=prediction_type)
            for name in ("ddim", "dpm")
        )
        return ((a - b).square().mean() / a.square().mean()).item()

    assert difference(200) < 1e-3
    assert difference(200) < difference(5)


def test_a_point_mass_is_reached_in_any_number_of_steps() -> None:
    class PointMass(LinearUNet):
        def forward(
            self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
        ) -> tuple[Tensor]:
            return (SCHEDULE.alpha(timestep) / SCHEDULE.sigma(timestep) * sample,)

    for steps in (1, 2, 7, 16):
        assert sample(PointMass(), steps=steps, guidance_scale=1.0).abs().max() < 1e-5


def test_bfloat16_stays_close() -> None:
    exact, rounded = sample(two_level_unet()), sample(two_level_unet(), precision="bf16")
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).square().mean() / exact.square().mean() < 0.05


def test_decoding_rounds_as_the_pipeline_does() -> None:
    vae = tiny_vae()
    pipe = pipeline(vae)
    expected = torch.from_numpy(draw(pipe, steps=4, guidance_scale=3.0, output="np")).permute(0, 3, 1, 2)
    ours = decode_latents(vae, sample(two_level_unet()), scaling_factor=0.5, batch_size=2)
    assert ours.dtype == torch.uint8
    assert (ours.int() - (expected * 255).round().int()).abs().max() <= 1


@pytest.mark.parametrize("swap", ["small decoder alone", "swapped into the vae"])
def test_a_pipeline_draws_with_the_small_decoder(swap: str) -> None:
    vae = tiny_vae()
    small = SmallDecoder.cut_from(vae, width_fraction=0.5).eval()
    pipe = pipeline(small if swap == "small decoder alone" else with_decoder(vae, small))
    expected = torch.from_numpy(draw(pipe, steps=4, guidance_scale=3.0, output="np")).permute(0, 3, 1, 2)
    ours = decode_latents(small, sample(two_level_unet()), scaling_factor=0.5)
    assert (ours.int() - (expected * 255).round().int()).abs().max() <= 1


LOAD = """
import sys, torch
import steps.diffusion.scheduler, steps.unet.small_decoder  # diffusers will not do it by itself
from diffusers import StableDiffusionPipeline
absent = {"text_encoder": None, "tokenizer": None, "safety_checker": None}
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True, **absent)
pipe.set_progress_bar_config(disable=True)
inputs = torch.load(sys.argv[2], weights_only=True)
print(type(pipe.scheduler).__name__, type(pipe.vae).__name__)
torch.save(pipe(**inputs, num_inference_steps=16, output_type="pt").images, sys.argv[3])
"""


def test_a_saved_pipeline_loads_in_another_process_and_draws_the_same(tmp_path: Path) -> None:
    pipe = pipeline(SmallDecoder.cut_from(tiny_vae(), width_fraction=0.5).eval())
    pipe.save_pretrained(tmp_path / "pipe")
    inputs = {
        "prompt_embeds": EMBEDDINGS,
        "negative_prompt_embeds": EMPTY.expand(5, -1, -1).contiguous(),
        "latents": NOISE,
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-c",
        LOAD,
        str(tmp_path / "pipe"),
        str(tmp_path / "inputs.pt"),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["GridDDIMScheduler", "SmallDecoder"]
    expected = pipe(**inputs, num_inference_steps=16, output_type="pt").images
    torch.testing.assert_close(
        torch.load(tmp_path / "out.pt", weights_only=True), expected, atol=1e-5, rtol=1e-5
    )
