"""The real flow, whose decoder_distillation fails the first time it is called. Run by test_snapfusion_flow.py."""

# ruff: noqa: E402 - as in the flow itself
import os
from pathlib import Path
from typing import Any

from flows.environment import prepare

prepare()

from flows import stages
from flows.snapfusion_flow import SnapFusionFlow

_original = stages.run


def _fails_once(flow: Any, stage: str, *arguments: Any) -> Any:
    marker = Path(os.environ["FAILED_ONCE"])
    if stage == "decoder_distillation" and not marker.exists():
        marker.touch()
        raise RuntimeError("injected failure")
    return _original(flow, stage, *arguments)


stages.run = _fails_once

if __name__ == "__main__":
    SnapFusionFlow()
