"""Keys and values of the text are computed once a sampling, and the result is the same to the bit."""

from typing import Any

import pytest
import torch

from steps.diffusion.sampler import Sampler, sample_latents
from steps.diffusion.schedule import NoiseSchedule
from steps.diffusion.text_once import text_projected_once
from steps.unet.conversion import as_evolved
from tests.factories import tiny_inputs, tiny_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE


@pytest.mark.parametrize("kind", [lambda unet: unet, as_evolved], ids=["whole", "evolved"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_every_batch_of_a_sampling_projects_its_own_text_once(
    kind: Any, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = kind(tiny_unet()).eval().requires_grad_(False)
    noise, _, text = tiny_inputs(batch=3)
    settings: dict[str, Any] = {
        "noise": noise, "embeddings": text, "empty_embedding": torch.zeros(1, 7, 12), "steps": 3, "sampler": sampler,
        "guidance_scale": 3.0, "prediction_type": "v_prediction", "batch_size": 2,
    }  # fmt: skip
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2.to_k"))
    calls: list[int] = []
    real = type(layer).forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        calls.extend([len(x)] if self is layer else [])
        return real(self, x)

    monkeypatch.setattr(type(layer), "forward", counted)
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    found = sample_latents(unet, schedule, **settings)
    assert calls == [4, 2]  # a call for each batch, both halves of it; not one a step
    monkeypatch.setattr("steps.diffusion.sampler.text_projected_once", lambda _: torch.no_grad())
    assert torch.equal(found, sample_latents(unet, schedule, **settings))
    assert len(calls) == 2 + 2 * 3


def test_what_is_kept_is_forgotten_even_after_an_error() -> None:
    unet = tiny_unet()
    z, t, text = tiny_inputs()
    before = unet(z, t, text).sample
    with pytest.raises(RuntimeError, match="stopped"), text_projected_once(unet):
        unet(z, t, torch.zeros_like(text))
        raise RuntimeError("stopped")
    assert torch.equal(unet(z, t, text).sample, before)
