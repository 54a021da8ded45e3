import pytest
import torch

from artifacts_schema.result_configs import ProgramCheckConfig
from steps.diffusion.schedule import NoiseSchedule
from steps.export.samples import decoder_samples, text_samples, unet_samples
from steps.files.errors import ExportError
from steps.models.base import encode_captions
from tests.steps.export.factories import SCHEDULE, export_base, pictures

CHECK = ProgramCheckConfig(timesteps=(999, 124))


def test_captions_are_read_as_the_pipeline_reads_them() -> None:
    ids = [sample.inputs["input_ids"].tolist() for sample in text_samples(export_base(), ["b a"])]
    assert ids == [[[30, 31, 31, 31, 31, 31, 31]], [[30, 1, 0, 31, 31, 31, 31]]]


def test_unet_sees_noisy_pictures_under_both_captions() -> None:
    base, drawn = export_base(), pictures()
    found = list(unet_samples(base, drawn, CHECK, batch=2, velocity=True))
    assert [sample.place for sample in found] == ["t = 999", "t = 999", "t = 124", "t = 124"]
    expected = encode_captions(base.tokenizer, base.text_encoder, ["", drawn.captions[1]]).half().float()
    text = found[3].inputs["encoder_hidden_states"]
    assert torch.equal(text, expected.transpose(1, 2).unsqueeze(2))
    z = found[3].inputs["sample"]
    assert z.shape == (2, 4, 16, 16) and torch.equal(z[0], z[1])
    assert found[3].inputs["timestep"].tolist() == [124.0, 124.0]
    # At t = 124 a picture is still to be seen, at t = 999 it is not.
    likeness = [
        torch.corrcoef(torch.stack([drawn.latents[i % 2].flatten(), s.inputs["sample"][0].flatten()]))[0, 1]
        for i, s in enumerate(found)
    ]
    assert likeness[3] > 0.8 > 0.3 > likeness[1].abs()


def test_velocity_is_recovered() -> None:
    base, drawn = export_base(), pictures(1)
    schedule = NoiseSchedule.from_config(SCHEDULE)
    for sample in unet_samples(base, drawn, CHECK, batch=1, velocity=True):
        now = sample.inputs["timestep"].long()
        z, v = sample.inputs["sample"], torch.randn(1, 4, 16, 16)
        eps = schedule.sigma(now) * z + schedule.alpha(now) * v
        torch.testing.assert_close(sample.quantity(eps), v, rtol=0, atol=1e-5)


def test_noise_is_compared_as_it_is() -> None:
    (sample, *_) = unet_samples(export_base(), pictures(1), CHECK, batch=1, velocity=False)
    eps = torch.randn(1, 4, 16, 16)
    assert torch.equal(sample.quantity(eps), eps)


def test_batch_of_one_has_the_caption_itself() -> None:
    base, drawn = export_base(), pictures(1)
    (sample, *_) = unet_samples(base, drawn, CHECK, batch=1, velocity=True)
    expected = encode_captions(base.tokenizer, base.text_encoder, drawn.captions).half().float()
    assert torch.equal(sample.inputs["encoder_hidden_states"], expected.transpose(1, 2).unsqueeze(2))


def test_timestep_beyond_the_schedule_is_refused() -> None:
    check = ProgramCheckConfig(timesteps=(1000, 5))
    with pytest.raises(ExportError, match=r"timesteps names \[1000\], the base's schedule ends at 999"):
        list(unet_samples(export_base(), pictures(), check, batch=2, velocity=True))


def test_decoder_gets_latents_as_the_runtime_divides_them() -> None:
    drawn = pictures()
    found = torch.cat([sample.inputs["z"] for sample in decoder_samples(drawn)])
    torch.testing.assert_close(found * 0.18215, drawn.latents, rtol=1e-3, atol=1e-4)
    assert torch.equal(found, found.half().float())
