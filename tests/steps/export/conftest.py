from pathlib import Path

import pytest
import torch

from tests.steps.export.programs import Layers, exporter


@pytest.fixture(scope="session")
def layers() -> Layers:
    """Other weights than those of the first network that a test makes."""
    torch.manual_seed(1)
    return Layers().eval()


@pytest.fixture(scope="session")
def package(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`layers`, converted once for all tests; who changes files takes a copy."""
    torch.set_num_threads(1)
    return exporter(tmp_path_factory.mktemp("layers"))(layers)
