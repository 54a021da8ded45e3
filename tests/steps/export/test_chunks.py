import inspect
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import pytest
import torch
from coremltools.models import utils

from steps.export.chunks import check_chunks, chunk_names, split_package
from steps.export.convert import export
from steps.export.interpreter import load_packages
from steps.export.wrappers import UNetForExport
from steps.files.errors import ExportError
from tests.steps.export.factories import CONTRACTS, export_base


def opset(package: Path) -> str:
    main = ct.models.MLModel(str(package), skip_model_load=True).get_spec().mlProgram.functions["main"]
    return str(main.opset)


def test_coremltools_still_moves_the_second_chunk_to_an_older_target() -> None:
    source = inspect.getsource(utils._make_second_chunk_prog)
    assert "opset_version = _ct.target.iOS16" in source  # when this fails, at_its_target in chunks can go


def test_coremltools_still_orders_what_passes_by_memory_addresses() -> None:
    source = inspect.getsource(utils._get_first_chunk_outputs)
    assert "boundary_vars = set()" in source  # when this fails, as_computed in chunks can go


def cut(folder: Path, target: str = "iOS17") -> dict[str, bytes]:
    """Converts and cuts a UNet whose weights are the same every time; the chunks' files."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder.mkdir()
    contract, package = CONTRACTS["unet"], folder / "unet.mlpackage"
    unet = UNetForExport(export_base().unet, None)
    export("unet", unet, contract, package, target=target, attribution="", version="0")
    return files(split_package("unet", package, contract, folder))


def files(chunks: Iterable[Path]) -> dict[str, bytes]:
    found = [(chunk, file) for chunk in chunks for file in chunk.rglob("*") if file.is_file()]
    return {file.relative_to(chunk.parent).as_posix(): file.read_bytes() for chunk, file in found}


@pytest.mark.long
def test_equal_weights_are_equal_chunks_in_another_process(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from tests.steps.export.test_chunks import cut; cut(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code]
    order = {"PYTHONPATH": str(Path(__file__).parents[3])}
    with (
        subprocess.Popen(
            [*command, tmp_path / "one"], env=os.environ | order | {"PYTHONHASHSEED": "1"}
        ) as one,
        subprocess.Popen(
            [*command, tmp_path / "two"], env=os.environ | order | {"PYTHONHASHSEED": "2"}
        ) as two,
    ):
        here = cut(tmp_path / "here")  # a third order of memory addresses
    assert one.returncode == two.returncode == 0
    assert len(here) == 6
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert files(folder / name for name in chunk_names("unet")) == here


@pytest.mark.slow
def test_chunks_for_ios18_compute_what_the_whole_does(tmp_path: Path) -> None:
    cut(tmp_path / "cut", "iOS18")
    paths = [tmp_path / "cut" / name for name in chunk_names("unet")]
    assert [opset(path) for path in paths] == ["CoreML8"] * 2
    whole, chunks = (load_packages("unet", p) for p in ([tmp_path / "cut/unet.mlpackage"], paths))
    assert chunks.operations["scaled_dot_product_attention"] == 8  # one operation since iOS18
    given = {name: torch.randn(shape) for name, shape in whole.inputs.items()}
    given["timestep"] = torch.full((2,), 499.0)
    expected, found = (p.run(given, rounded=True)["noise_pred"] for p in (whole, chunks))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def spec(inputs: list[str], outputs: list[str]) -> Any:
    names = [[SimpleNamespace(name=name) for name in part] for part in (inputs, outputs)]
    return SimpleNamespace(description=SimpleNamespace(input=names[0], output=names[1]))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((["sample"], ["h"]), (["h", "g", "timestep"], ["noise_pred"]), r"unknown inputs \['g'\]"),
        (
            (["sample"], ["h"]),
            (["h", "timestep"], ["noise_pred"]),
            r"unused inputs \['encoder_hidden_states'\]",
        ),
        (
            (["sample", "timestep", "encoder_hidden_states"], ["h"]),
            (["h"], ["other"]),
            r"expected the outputs \['noise_pred'\] of chunk 2, found \['other'\]",
        ),
    ],
)
def test_chunks_that_do_not_fit_are_refused(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_chunks("unet", [spec(*first), spec(*second)], CONTRACTS["unet"])
