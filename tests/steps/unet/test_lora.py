"""LoRAs on the evolved UNet, through peft as for any UNet of diffusers."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from steps.unet.architecture import copy_block, remove_unit
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet
from tests.factories import TINY_CONFIG, tiny_inputs, tiny_unet


def evolved() -> EvolvedUNet:
    whole = EvolvedUNet.from_unet(tiny_unet())
    spec = remove_unit(whole.spec, TINY_CONFIG, "down.0.attentions.0")
    return build(copy_block(spec, TINY_CONFIG, "up.1.attentions.0"), whole)


@torch.no_grad()
def test_a_lora_changes_the_output_and_unloading_restores_it(tmp_path: Path) -> None:
    trained = evolved()
    trained.add_adapter(
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"])
    )
    weights = {f"unet.{name}": value for name, value in get_peft_model_state_dict(trained).items()}
    assert any("attentions.0_copy1" in name for name in weights)
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")

    unet, inputs = evolved(), tiny_inputs()
    before = unet(*inputs).sample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        unet.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    assert torch.allclose(unet(*inputs).sample, trained(*inputs).sample)
    assert not torch.allclose(unet(*inputs).sample, before)
    unet.unload_lora()
    assert torch.equal(unet(*inputs).sample, before)
