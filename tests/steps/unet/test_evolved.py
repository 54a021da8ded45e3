"""The evolved UNet: equal to the base when full, equal to skipping without a unit, fit for a pipeline."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from steps.files.errors import ArchitectureError
from steps.unet.architecture import copy_block, list_units, named_spec, remove_unit
from steps.unet.blocks import GEOMETRY_KEYS, SD15_UNET_CONFIG, full_spec, normalise
from steps.unet.conversion import as_evolved, build
from steps.unet.evolved import EvolvedUNet
from tests.factories import TINY_CONFIG, tiny_inputs, tiny_unet

UNIT_IDS = [unit.id for unit in list_units(full_spec(TINY_CONFIG), TINY_CONFIG)]


@pytest.fixture(scope="module")
def evolved() -> EvolvedUNet:
    return EvolvedUNet.from_unet(tiny_unet())


@torch.no_grad()
def _output(unet: torch.nn.Module, *, size: int = 16) -> Tensor:
    latents, timesteps, text = tiny_inputs(size=size)
    return unet(latents, timesteps, text).sample


@pytest.mark.parametrize("size", [16, 15, 12, 8], ids=["divisible", "odd", "twice divisible", "smallest"])
def test_full_spec_gives_the_base_output_bit_for_bit(size: int) -> None:
    unet = tiny_unet()
    evolved = EvolvedUNet.from_unet(unet)
    assert torch.equal(_output(evolved, size=size), _output(unet, size=size))
    assert list(evolved.state_dict()) == list(unet.state_dict())


@pytest.mark.parametrize("sides", [(16, 12), (12, 16)])
@torch.no_grad()
def test_pictures_that_are_no_squares_are_reproduced(sides: tuple[int, int]) -> None:
    unet = tiny_unet()
    latents, timesteps, text = tiny_inputs()
    latents = latents[:, :, : sides[0], : sides[1]]
    found = EvolvedUNet.from_unet(unet)(latents, timesteps, text).sample
    assert torch.equal(found, unet(latents, timesteps, text).sample)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": (1, 2, 3, 2)},
        {"use_linear_projection": True, "attention_head_dim": (2, 4, 4, 4)},
        {"resnet_time_scale_shift": "scale_shift", "center_input_sample": True},
        {"layers_per_block": 1, "mid_block_type": None},
        {
            "layers_per_block": 1,
            "mid_block_type": None,
            "block_out_channels": (8, 16, 24),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        },
    ],
    ids=["layers", "SD 2 projection", "scale shift", "BK-SDM small", "BK-SDM tiny"],
)
def test_other_bases_are_reproduced_too(changes: dict[str, Any]) -> None:
    unet = tiny_unet(**changes)
    assert torch.equal(_output(EvolvedUNet.from_unet(unet)), _output(unet))


def test_what_a_config_leaves_out_is_as_in_diffusers() -> None:
    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    ours = inspect.signature(EvolvedUNet.__init__).parameters
    for name in GEOMETRY_KEYS:
        assert ours[name].default == theirs[name].default == normalise({})[name], name


def test_gradients_are_the_base_ones_also_with_checkpointing() -> None:
    unet, evolved = tiny_unet().train(), EvolvedUNet.from_unet(tiny_unet()).train()
    evolved.enable_gradient_checkpointing()
    latents, timesteps, text = tiny_inputs()
    for model in (unet, evolved):
        model(latents, timesteps, text).sample.square().mean().backward()
    own = dict(evolved.named_parameters())
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, msg=name)


@pytest.mark.parametrize("unit_id", UNIT_IDS)
def test_removing_a_unit_equals_skipping_it(evolved: EvolvedUNet, unit_id: str) -> None:
    whole = _output(evolved)
    evolved.set_skipped([unit_id])
    try:
        skipped = _output(evolved)
    finally:
        evolved.set_skipped()
    spec = remove_unit(evolved.spec, TINY_CONFIG, unit_id)
    smaller = build(spec, evolved)
    assert torch.equal(_output(smaller), skipped)
    assert not torch.allclose(skipped, whole)
    assert torch.equal(_output(evolved), whole)
    gone = sum(p.numel() for block in spec.removed for p in evolved.block(block).parameters())
    assert _size(evolved) - _size(smaller) == gone > 0


def test_removing_many_units_equals_skipping_them(evolved: EvolvedUNet) -> None:
    chosen = [unit_id for unit_id in UNIT_IDS if unit_id.startswith(("down.0.a", "up.3.a", "mid.", "down.3"))]
    evolved.set_skipped(chosen)
    skipped = _output(evolved)
    evolved.set_skipped()
    spec = evolved.spec
    for unit_id in chosen:
        spec = remove_unit(spec, TINY_CONFIG, unit_id)
    assert torch.equal(_output(build(spec, evolved)), skipped)


def test_last_skip_of_a_level_is_taken_after_its_last_remaining_block(evolved: EvolvedUNet) -> None:
    # Without down.2.resnets.1 the attention down.2.attentions.1 still runs before the level's one remaining
    # skip, so removing that attention must change what up.1.resnets.1 is given.
    seen: dict[str, Tensor] = {}
    spec = remove_unit(evolved.spec, TINY_CONFIG, "down.2.resnets.1+up.1.resnets.0")
    smaller = build(spec, evolved)
    smaller.block("down.2.attentions.1").register_forward_hook(
        lambda _, __, output: seen.__setitem__("last", output[0])
    )
    smaller.block("up.1.resnets.1").register_forward_pre_hook(
        lambda _, inputs: seen.__setitem__("up", inputs[0])
    )
    _output(smaller)
    skip = seen["up"][:, -seen["last"].shape[1] :]
    assert torch.equal(skip, seen["last"])


def test_a_dropped_skip_is_not_handed_to_the_next_resnet(evolved: EvolvedUNet) -> None:
    seen: dict[str, Tensor] = {}
    hook = evolved.block("up.1.resnets.1").register_forward_pre_hook(
        lambda _, inputs: seen.__setitem__("up", inputs[0][:, -24:])
    )
    _output(evolved)
    before = seen["up"]
    evolved.set_skipped(["up.1.resnets.0"])
    _output(evolved)
    evolved.set_skipped()
    hook.remove()
    assert torch.equal(seen["up"], before)


def test_skipping_an_unknown_unit_is_refused(evolved: EvolvedUNet) -> None:
    with pytest.raises(ArchitectureError, match=r"up\.2\.resnets\.0"):
        evolved.set_skipped(["up.2.resnets.0"])


def test_a_copy_starts_as_its_original_and_trains_apart(evolved: EvolvedUNet) -> None:
    spec = copy_block(evolved.spec, TINY_CONFIG, "up.1.attentions.0")
    bigger = build(spec, evolved)
    original, copied = bigger.block("up.1.attentions.0"), bigger.block("up.1.attentions.0.copy1")
    for left, right in zip(original.parameters(), copied.parameters(), strict=True):
        assert torch.equal(left, right)
        assert left.data_ptr() != right.data_ptr()
    assert not torch.allclose(_output(bigger), _output(evolved))
    # Removing the original later keeps what the copy has learned.
    with torch.no_grad():
        next(copied.parameters()).add_(1.0)
    again = build(remove_unit(spec, TINY_CONFIG, "up.1.attentions.0"), bigger)
    assert torch.equal(next(again.block("up.1.attentions.0.copy1").parameters()), next(copied.parameters()))


def test_a_copied_down_resnet_makes_no_skip(evolved: EvolvedUNet) -> None:
    bigger = build(copy_block(evolved.spec, TINY_CONFIG, "down.3.resnets.0"), evolved)
    assert _output(bigger).shape == (2, 4, 16, 16)


@pytest.mark.parametrize(
    ("copied", "taker"), [(0, 1), (1, 0)], ids=["before the next ResNet", "last of its level"]
)
def test_a_skip_is_taken_after_the_copy_of_its_resnet(evolved: EvolvedUNet, copied: int, taker: int) -> None:
    seen: dict[str, Tensor] = {}
    bigger = build(copy_block(evolved.spec, TINY_CONFIG, f"down.3.resnets.{copied}"), evolved)
    for name in ("", ".copy1"):
        bigger.block(f"down.3.resnets.{copied}{name}").register_forward_hook(
            lambda _, __, output, name=name: seen.__setitem__(name, output)
        )
    bigger.block(f"up.0.resnets.{taker}").register_forward_pre_hook(
        lambda _, inputs: seen.__setitem__("up", inputs[0])
    )
    _output(bigger)
    assert torch.equal(seen["up"][:, -24:], seen[".copy1"])
    assert not torch.equal(seen[""], seen[".copy1"])


def test_to_unet_gives_the_plain_class_back(evolved: EvolvedUNet) -> None:
    assert torch.equal(_output(evolved.to_unet()), _output(evolved))
    smaller = build(remove_unit(evolved.spec, TINY_CONFIG, "mid.resnets.0"), evolved)
    with pytest.raises(ArchitectureError, match="lacks 1 blocks"):
        smaller.to_unet()
    assert as_evolved(smaller) is smaller


def test_round_trip_in_a_fresh_process(evolved: EvolvedUNet, tmp_path: Path) -> None:
    spec = remove_unit(evolved.spec, TINY_CONFIG, "down.2.resnets.1+up.1.resnets.0", name="small")
    smaller = build(copy_block(spec, TINY_CONFIG, "mid.attentions.0"), evolved)
    smaller.save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["_class_name"] == "EvolvedUNet"
    written = (tmp_path / "unet" / "README.md").read_text()
    assert "steps.unet.evolved" in written
    assert smaller.spec.removed[0] in written and smaller.spec.copied[0] in written
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    program = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from steps.unet.evolved import EvolvedUNet\n"
        "from tests.factories import tiny_inputs\n"
        "torch.set_num_threads(1)\n"
        "unet = EvolvedUNet.from_pretrained(sys.argv[1])\n"
        "assert unet.spec.name == 'small'\n"
        "with torch.no_grad():\n"
        "    save_file({'sample': unet(*tiny_inputs()).sample}, sys.argv[2])\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "unet"), str(tmp_path / "out.safetensors")],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out.safetensors")["sample"], _output(smaller))


def test_works_in_a_plain_pipeline_and_comes_back_with_it(evolved: EvolvedUNet, tmp_path: Path) -> None:
    smaller = build(remove_unit(evolved.spec, TINY_CONFIG, "down.0.attentions.0"), evolved)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=32,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=smaller,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    text = tiny_inputs()[2]
    images = pipeline(
        prompt_embeds=text[:1],
        negative_prompt_embeds=text[1:],
        num_inference_steps=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images.shape == (1, 3, 32, 32)
    assert bool(torch.isfinite(images).all())
    pipeline.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None, local_files_only=True
    )
    assert isinstance(again.unet, EvolvedUNet)
    assert torch.equal(_output(again.unet), _output(smaller))


def test_named_spec_has_759_million_parameters() -> None:
    with torch.device("meta"):
        base = EvolvedUNet(**normalise(SD15_UNET_CONFIG))
        smaller = build(named_spec("snapfusion-sd15", SD15_UNET_CONFIG), base, load_weights=False)
        latents, text = torch.empty(2, 4, 64, 64), torch.empty(2, 77, 768)
        sample = smaller(latents, torch.tensor(5), text).sample
    assert _size(base) == 859_520_964
    assert round(_size(smaller) / 1e6, 1) == 759.3
    assert sample.shape == (2, 4, 64, 64)


def test_named_spec_fits_a_miniature_base(evolved: EvolvedUNet) -> None:
    smaller = build(named_spec("snapfusion-sd15", TINY_CONFIG), evolved)
    output = _output(smaller)
    assert output.shape == (2, 4, 16, 16)
    assert bool(torch.isfinite(output).all())


@pytest.mark.slow
def test_named_spec_runs_for_real() -> None:
    geometry = {**normalise(SD15_UNET_CONFIG), "sample_size": 8}
    spec = named_spec("snapfusion-sd15", geometry)
    with torch.device("meta"):
        smaller = build(spec, EvolvedUNet(**geometry), load_weights=False)
    smaller = smaller.to(torch.bfloat16).to_empty(device="cpu").eval()
    for name, parameter in smaller.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    with torch.no_grad():
        sample = smaller(torch.randn(2, 4, 8, 8).bfloat16(), 500, torch.randn(2, 77, 768).bfloat16()).sample
    assert sample.shape == (2, 4, 8, 8)
    assert bool(torch.isfinite(sample).all())


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
