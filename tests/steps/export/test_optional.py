import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from artifacts_schema.result_configs import CoremlExportConfig
from steps.export.interpreter import Program
from steps.export.optional import EncoderForExport, SafetyCheckerForExport, load_safety_checker
from steps.export.wrappers import RUNTIME_SCALING_FACTOR
from steps.files.errors import ExportError
from steps.inputs.loaded import fetch_folder
from steps.models.base import BaseModel
from steps.stages.coreml_export import export_component
from tests.factories import context
from tests.steps.export.factories import export_base, pictures


def tiny_checker() -> StableDiffusionSafetyChecker:
    """Looks at 16 x 16; the concepts' vectors are random."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=12))
    checker.concept_embeds.data.normal_()
    checker.special_care_embeds.data.normal_()
    return checker.eval()


def export(component: Any, base: BaseModel, folder: Path, config: CoremlExportConfig) -> Any:
    where = context(folder, "coreml_export")
    report = export_component(
        component, base, pictures(), config, where, weights=None, prediction_type="epsilon"
    )
    return report, Program.load(component, fetch_folder(where, report.package, "package"))


def test_encoder_gives_moments_for_the_runtimes_scaling_factor() -> None:
    base = export_base(scaling_factor=0.13)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    moments = EncoderForExport(base.vae, base.scaling_factor)(x)
    expected = base.vae.encode(x).latent_dist
    mean, logarithm = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean * RUNTIME_SCALING_FACTOR, expected.mean * 0.13, atol=1e-5, rtol=1e-4)
    deviation = (logarithm / 2).exp() * RUNTIME_SCALING_FACTOR
    torch.testing.assert_close(deviation, expected.std * 0.13, atol=1e-5, rtol=1e-4)


def test_encoder_without_quantisation_folds_into_its_last_convolution() -> None:
    base = export_base()
    base.vae.quant_conv = None
    encoder = EncoderForExport(base.vae, 2 * RUNTIME_SCALING_FACTOR)
    added = encoder.encoder.conv_out.bias[4:] - base.vae.encoder.conv_out.bias[4:]
    torch.testing.assert_close(added, torch.full((4,), 2 * math.log(2)))
    with pytest.raises(ExportError, match="scaling_factor must be positive"):
        EncoderForExport(base.vae, 0.0)


@pytest.mark.parametrize(("threshold", "special"), [(2.0, 2.0), (-2.0, 2.0), (2.0, -2.0)])
def test_safety_checker_decides_as_diffusers_does(threshold: float, special: float) -> None:
    checker = tiny_checker()
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(special)
    clip_input, images = torch.randn(1, 3, 16, 16), torch.rand(1, 8, 8, 3)
    expected, unsafe = checker.forward_onnx(clip_input, images.clone())
    scores, found, filtered = SafetyCheckerForExport(checker)(clip_input, images, torch.zeros(1))
    assert bool(found) == bool(unsafe) == (threshold < 0)
    torch.testing.assert_close(filtered, expected)
    assert scores.shape == (1, 17)


def test_special_concept_and_adjustment_make_it_stricter() -> None:
    checker = tiny_checker()
    clip_input, images = torch.randn(1, 3, 16, 16), torch.rand(1, 8, 8, 3)
    plain = SafetyCheckerForExport(checker)(clip_input, images, torch.zeros(1))[0]
    adjusted = SafetyCheckerForExport(checker)(clip_input, images, torch.full((1,), 3.0))[0]
    torch.testing.assert_close(adjusted, plain + 0.01)


def test_encoder_package_passes_its_check(tmp_path: Path) -> None:
    report, program = export("vae_encoder", export_base(), tmp_path, CoremlExportConfig())
    assert program.inputs == {"x": (1, 3, 32, 32)} and program.outputs == {"latent": (1, 8, 16, 16)}
    assert report.parity.quantity == "moments of the latents"
    assert report.package_name.endswith("_vae_encoder.mlpackage")


def test_safety_checker_package_blackens_what_torch_does(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    checker = tiny_checker()
    checker.concept_embeds_weights.data.fill_(-2.0)  # everything is unsafe
    checker.save_pretrained(folder / "safety_checker")
    report, program = export(
        "safety_checker", replace(export_base(), path=folder), tmp_path, CoremlExportConfig()
    )
    given = {
        "clip_input": torch.randn(1, 3, 16, 16),
        "images": torch.rand(1, 512, 512, 3),
        "adjustment": torch.zeros(1),
    }
    found = program.run(given, rounded=True)
    assert found["has_nsfw_concepts"].tolist() == [1.0]
    assert float(found["filtered_images"].abs().max()) == 0.0
    assert report.parity.quantity == "scores of the concepts"


def test_safety_checker_without_some_weights_is_refused(tmp_path: Path) -> None:
    tiny_checker().save_pretrained(tmp_path / "safety_checker")
    (path,) = (tmp_path / "safety_checker").glob("*.safetensors")
    save_file({n: v for n, v in load_file(path).items() if n != "concept_embeds"}, path)
    with pytest.raises(ExportError, match=r"1 tensors missing \(concept_embeds\)"):
        load_safety_checker(tmp_path)


def test_base_without_a_safety_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"safety_checker: .*leave it out"):
        load_safety_checker(tmp_path)
