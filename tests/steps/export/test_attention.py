import pytest
import torch

from steps.export.attention import SplitEinsumProcessor
from steps.files.errors import ExportError
from steps.unet.evolved import EvolvedUNet
from tests.factories import tiny_inputs, tiny_unet


def test_split_einsum_is_the_same_attention() -> None:
    unet = EvolvedUNet.from_unet(tiny_unet())
    latents, timesteps, text = tiny_inputs()
    with torch.no_grad():
        expected = unet(latents, timesteps, text).sample
        unet.set_attn_processor(SplitEinsumProcessor())
        found = unet(latents, timesteps, text).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_mask_is_refused() -> None:
    with pytest.raises(ExportError, match="mask"):
        SplitEinsumProcessor()(None, torch.zeros(1, 2, 3), attention_mask=torch.zeros(1, 2))
