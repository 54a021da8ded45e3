"""Which combinations are drawn, and what becomes of the reports. The stage itself runs in tests/contract."""

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts_schema.base import Measurement
from artifacts_schema.bundle import Component, DrawingScores, Scheme
from artifacts_schema.compression import (
    Combination,
    CompressedVariant,
    CompressionRecord,
    compressed_reports,
)
from artifacts_schema.result_configs import CoremlCompressionConfig
from steps.export.bundle_pictures import score
from steps.export.picture_gate import missed
from steps.stages.coreml_compression import candidates
from steps.store.local import LocalStore
from tests.steps.export.factories import fake_report

CONFIG = CoremlCompressionConfig()
SIZES = {"text_encoder": 200, "unet": 800, "vae_decoder": 100}


def scores(worst: float, clip_drop: float = 0.0) -> DrawingScores:
    return DrawingScores(
        pictures=4,
        psnr_db=Measurement(n=4, median=worst + 5, p10=worst, p90=worst + 9, unit="dB"),
        worst_psnr_db=worst,
        clip_score=0.25 - clip_drop,
        torch_clip_score=0.25,
        clip_drop=clip_drop,
    )


def variant(
    component: Component, scheme: Scheme, size: int, worst: float, **fields: Any
) -> CompressedVariant:
    found = scores(worst)
    passed = not missed(found, CONFIG)
    return CompressedVariant(
        component=component, scheme=scheme, bytes=size, scores=found, passed=passed, **fields
    )


UNCOMPRESSED = Combination(schemes={}, bytes=1100, scores=scores(50.0), passed=True)


def test_smallest_first_and_only_what_passed() -> None:
    variants = [
        variant("unet", "palette_8", 400, 40.0),
        variant("unet", "palette_6", 300, 25.0),  # misses the gate
        variant("vae_decoder", "palette_4", 30, 38.0),
    ]
    found = candidates(variants, SIZES, UNCOMPRESSED, CONFIG)
    assert [combination.bytes for combination, _ in found] == [630, 700, 1030]
    assert found[0][0].schemes == {
        "text_encoder": "fp16", "unet": "palette_8", "vae_decoder": "palette_4",
    }  # fmt: skip


def test_what_the_export_itself_costs_is_counted_once() -> None:
    before = Combination(schemes={}, bytes=1100, scores=scores(33.0), passed=True)
    variants = [variant("unet", "palette_8", 400, 33.0), variant("text_encoder", "palette_8", 100, 33.0)]
    assert len(candidates(variants, SIZES, before, CONFIG)) == 3


def test_what_saves_nothing_is_not_combined() -> None:
    variants = [variant("unet", "palette_8", 800, 40.0), variant("vae_decoder", "palette_8", 120, 40.0)]
    assert candidates(variants, SIZES, UNCOMPRESSED, CONFIG) == []


def test_what_cannot_pass_together_is_not_drawn() -> None:
    # Each passes at 31 dB; two such errors are at 28.
    variants = [variant("unet", "palette_8", 400, 31.0), variant("text_encoder", "palette_8", 100, 31.0)]
    found = candidates(variants, SIZES, UNCOMPRESSED, CONFIG)
    assert [combination.bytes for combination, _ in found] == [700, 1000]


@pytest.mark.parametrize(
    ("worst", "drop", "reason"),
    [(30.0, 0.01, ""), (29.9, 0.0, "worst picture 29.9 dB"), (40.0, 0.02, "CLIP score 0.0200 lower")],
)
def test_gates(worst: float, drop: float, reason: str) -> None:
    found = missed(scores(worst, drop), CONFIG)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_a_picture_that_is_not_a_number_misses_its_gate() -> None:
    """It is as far off as can be, and no record is refused for it."""

    class Alike:
        def scores(self, images: Any, captions: Any) -> Any:
            return torch.ones(len(images))

    clip: Any = Alike()
    found = score(torch.full((2, 3, 4, 4), float("nan")), torch.zeros(2, 3, 4, 4), ["a", "b"], clip)
    assert found.worst_psnr_db == 0.0 and missed(found, CONFIG)


def test_reports_get_the_chosen_packages(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    reports = [fake_report(store, tmp_path, name) for name in ("unet", "vae_decoder")]
    smaller = fake_report(store, tmp_path / "smaller", "unet").package
    record = CompressionRecord(
        stage="coreml_compression",
        captions=(),
        uncompressed=None,
        variants=(variant("unet", "palette_8", 400, 40.0, package=smaller),),
        combinations=(),
        chosen={"unet": "palette_8", "vae_decoder": "fp16"},
    )
    unet, decoder = compressed_reports(reports, record)
    assert unet.package == smaller and unet.parity_note == "not measured"
    assert decoder == reports[1]


def test_mixed_bits_need_something_to_be_held_against() -> None:
    with pytest.raises(ValueError, match="palette_6"):
        CoremlCompressionConfig(schemes=("mixed", "palette_6"))
    assert CoremlCompressionConfig(schemes=("palette_6", "mixed")).schemes
