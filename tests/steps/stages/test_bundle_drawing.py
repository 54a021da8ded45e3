from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from artifacts_schema.result_configs import CoremlExportConfig, ProgramCheckConfig
from steps.export.bundle_pictures import score
from steps.export.bundle_run import Bundle
from steps.files.errors import ExportError
from steps.stages.bundle_drawing import check_scores, check_tokens
from tests.steps.export.factories import VOCABULARY, export_base


class ByBrightness:
    """Scores a picture by its mean, whatever the caption."""

    def scores(self, images: Tensor, captions: Any) -> Tensor:
        return images.float().mean((1, 2, 3)) / 255


def grey(*levels: int) -> Tensor:
    """Pictures in [-1, 1] of one grey each, given as a byte."""
    return torch.stack([torch.full((3, 4, 4), level / 127.5 - 1.0) for level in levels])


def scores(drawn: Tensor, expected: Tensor) -> Any:
    clip: Any = ByBrightness()
    return score(drawn, expected, ["a"] * len(drawn), clip)


def test_scores_by_definition() -> None:
    found = scores(grey(100, 51), grey(100, 102))
    # 20 log10(255 / 51) = 13.98 dB
    assert found.worst_psnr_db == pytest.approx(13.979, abs=1e-3)
    assert found.clip_drop == pytest.approx((102 - 51) / 255 / 2)
    assert found.clip_drop == pytest.approx(found.torch_clip_score - found.clip_score)
    assert (found.pictures, found.psnr_db.n, found.psnr_db.unit) == (2, 2, "dB")


def test_equal_pictures_have_a_finite_ratio() -> None:
    assert scores(grey(7), grey(7)).worst_psnr_db == 200.0


def test_less_than_a_grey_level_is_seen() -> None:
    close = grey(7) + 1e-4
    assert scores(close, grey(7)).worst_psnr_db == pytest.approx(86.0, abs=0.1)


def test_picture_below_its_gate_is_refused() -> None:
    found = scores(grey(100, 51), grey(100, 102))
    config = CoremlExportConfig(program_check=ProgramCheckConfig(min_image_psnr_db=14.0))
    with pytest.raises(ExportError, match="bundle: expected every picture at 14 dB or more .*found 14.0 dB"):
        check_scores(found, config)
    check_scores(found, CoremlExportConfig(program_check=ProgramCheckConfig(min_image_psnr_db=13.9)))


def with_tokenizer(tokenizer: CLIPTokenizer) -> Bundle:
    """A bundle of which only the tokenizer is looked at."""
    bundle = Bundle.__new__(Bundle)
    bundle.tokenizer = tokenizer
    return bundle


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "message"),
    [
        ({**VOCABULARY, "a</w>": 1, "b</w>": 0}, 7, "'b' other token ids"),
        (VOCABULARY, 6, "captions have 6 tokens, the base's 7"),
    ],
)
def test_tokenizer_that_disagrees_is_refused(vocabulary: dict[str, int], tokens: int, message: str) -> None:
    bundle = with_tokenizer(CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=tokens))
    with pytest.raises(ExportError, match=message):
        check_tokens(bundle, export_base(), ["b", "a"])


def test_tokenizer_that_agrees_passes() -> None:
    base = export_base()
    check_tokens(with_tokenizer(base.tokenizer), base, ["b", "a a"])
