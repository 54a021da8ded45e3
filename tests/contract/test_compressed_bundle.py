"""The stage `coreml_compression` on a real bundle: what is tried, what passes, what is chosen and stored."""

from pathlib import Path
from typing import Any

import pytest

from artifacts_schema.compression import CompressedVariant
from steps.export.picture_gate import missed
from steps.files.errors import ExportError
from steps.stages import coreml_compression
from steps.stages.coreml_compression import folder_bytes
from tests.contract.exported import Exported, bundle_of, compressed
from tests.factories import Shown


def by_name(variants: tuple[CompressedVariant, ...]) -> dict[str, CompressedVariant]:
    return {f"{variant.component} {variant.scheme}": variant for variant in variants}


def test_the_smallest_that_draws_the_same_is_chosen(exported: Exported, tmp_path: Path) -> None:
    bundle_of(exported, tmp_path / "bundle", exported.reports["unet"])
    shown = Shown()
    # Tables of 256 numbers are larger than the weights of so small a model; 16 numbers save something in the UNet.
    found, config = compressed(exported, tmp_path / "bundle", shown, schemes=("palette_8", "palette_4"))
    assert shown.totals == [7] and shown.done == [1, 2, 3, 4, 5, 6]
    sizes = {
        name: folder_bytes(tmp_path / "bundle" / report.package_name)
        for name, report in exported.reports.items()
    }
    assert found.uncompressed is not None and found.uncompressed.passed
    assert found.uncompressed.bytes == sum(sizes.values())
    variants = by_name(found.variants)
    assert len(variants) == 6
    for variant in variants.values():
        assert variant.scores is not None and variant.package is not None
        assert variant.note == missed(variant.scores, config) and variant.passed == (not variant.note)
        stored = sum(ref.bytes for ref in variant.package.files.values())
        assert stored == variant.bytes
    assert all(variant.passed for variant in variants.values())
    assert variants["unet palette_4"].bytes < sizes["unet"] < variants["unet palette_8"].bytes
    (chosen,) = found.combinations  # what does not save is not combined
    assert chosen.passed and not chosen.note
    assert (
        found.chosen == chosen.schemes == {"text_encoder": "fp16", "unet": "palette_4", "vae_decoder": "fp16"}
    )
    assert chosen.bytes == sum(sizes.values()) - sizes["unet"] + variants["unet palette_4"].bytes
    assert chosen.scores is not None and chosen.scores == variants["unet palette_4"].scores


def test_where_nothing_passes_the_bundle_stays_as_it_is(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = coreml_compression.compress

    def failing(component: str, *arguments: Any, **named: Any) -> None:
        if component == "unet":
            raise ExportError("unet: cannot be compressed")
        original(component, *arguments, **named)

    monkeypatch.setattr(coreml_compression, "compress", failing)
    bundle_of(exported, tmp_path / "bundle", exported.reports["unet"])
    found, _ = compressed(
        exported, tmp_path / "bundle", Shown(), schemes=("palette_4",), min_image_psnr_db=150.0
    )
    assert found.uncompressed is not None and found.uncompressed.passed  # the program check has judged it
    failed = by_name(found.variants)["unet palette_4"]
    assert (failed.bytes, failed.package, failed.note) == (0, None, "unet: cannot be compressed")
    assert not any(variant.passed for variant in found.variants) and found.combinations == ()
    assert set(found.chosen.values()) == {"fp16"} and set(found.chosen) == set(exported.reports)
