"""What `draw` refuses before it reads any model."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steps.files.errors import ConfigError, SnapFusionError
from steps.report.drawing import DrawRequest, draw
from steps.store import LocalStore

REPORT: Any = SimpleNamespace(config={})


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
def test_a_guidance_scale_that_draws_nothing_is_refused(tmp_path: Path, scale: float) -> None:
    with pytest.raises(SnapFusionError, match=f"guidance scale between 0 and 1000, found {scale}"):
        draw(LocalStore(tmp_path), REPORT, DrawRequest("a flag", guidance_scale=scale))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        draw(LocalStore(tmp_path), REPORT, DrawRequest("a flag", device="cuda"))
