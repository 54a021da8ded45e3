"""A UNet in two packages, beside the one that is whole."""

from pathlib import Path

import torch

from artifacts_schema.bundle import ComponentReport
from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from steps.export.bundle_run import Bundle
from steps.export.interpreter import load_packages
from steps.inputs.loaded import fetch_folder
from tests.contract.exported import Exported, bundle_of, compressed
from tests.factories import Shown
from tests.steps.export.test_chunks import opset

CHECK = ProgramCheckConfig(captions=1, timesteps=(499,))


def test_chunks_compute_what_the_whole_does_and_draw(exported: Exported, tmp_path: Path) -> None:
    whole, where = exported.reports["unet"], exported.context
    report = exported.convert("unet", CoremlExportConfig(chunked_unet=True, program_check=CHECK), count=1)
    stem = whole.package_name.removesuffix(".mlpackage")
    assert report.chunks == (f"{stem}_chunk1.mlpackage", f"{stem}_chunk2.mlpackage")
    one = load_packages("unet", [fetch_folder(where, whole.package, "one")])
    folder = fetch_folder(where, report.package, "two")
    assert all(opset(folder / name) == "CoreML7" for name in report.chunks)
    two = load_packages("unet", [folder / name for name in report.chunks])
    sizes = [sum(f.stat().st_size for f in (folder / name).rglob("*.bin")) for name in report.chunks]
    assert max(sizes) < 0.8 * sum(sizes)
    assert two.inputs == one.inputs and two.outputs == one.outputs
    given = {name: torch.randn(shape) for name, shape in one.inputs.items()}
    given["timestep"] = torch.full((2,), 499.0)
    for rounded in (False, True):
        expected, found = (program.run(given, rounded=rounded)["noise_pred"] for program in (one, two))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    draw_with_chunks(exported, tmp_path, report)


def draw_with_chunks(exported: Exported, folder: Path, unet: ComponentReport) -> None:
    manifest = bundle_of(exported, folder / "bundle", unet)
    assert manifest.complete and manifest.components["unet"].packages == unet.chunks
    assert not (folder / "bundle" / unet.package_name).exists()
    picture = Bundle.open(folder / "bundle").draw("a", torch.randn(1, 4, 16, 16))
    assert picture.pixels.shape == (1, 3, 32, 32)
    found, _ = compressed(exported, folder / "bundle", Shown(), schemes=("palette_4",))
    (variant,) = (each for each in found.variants if each.component == "unet")
    assert variant.passed and variant.package is not None
    assert {path.split("/")[0] for path in variant.package.files} == set(unet.chunks)
    assert found.chosen["unet"] == "palette_4"
