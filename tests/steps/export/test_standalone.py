"""Self-contained modules: they import nothing of this project, and do what the sources do."""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steps.diffusion.scheduler import GridDDIMScheduler
from steps.export.standalone import STANDALONE, Standalone
from steps.files.errors import ExportError
from steps.unet.architecture import copy_block, remove_unit
from steps.unet.conversion import build
from steps.unet.evolved import EvolvedUNet
from steps.unet.small_decoder import SmallDecoder
from tests.factories import TINY_CONFIG, tiny_inputs, tiny_unet, tiny_vae

ALLOWED = {"torch", "diffusers"} | sys.stdlib_module_names


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each class out of its generated file, imported by no name of this project."""
    folder, found = tmp_path_factory.mktemp("standalone"), {}
    for item in STANDALONE:
        path = folder / f"{item.module}.py"
        path.write_text(item.source())
        spec = importlib.util.spec_from_file_location(f"generated_{item.module}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        found[item.name] = getattr(module, item.name)
    return found


@pytest.mark.parametrize("item", STANDALONE, ids=lambda item: item.module)
def test_only_torch_and_diffusers_are_imported(item: Standalone) -> None:
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(ast.parse(item.source()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.split(".")[0] for name in modules} <= ALLOWED


@torch.no_grad()
def test_the_unet_is_the_one_that_was_trained(classes: dict[str, Any]) -> None:
    whole = EvolvedUNet.from_unet(tiny_unet())
    spec = remove_unit(whole.spec, TINY_CONFIG, "down.2.resnets.1+up.1.resnets.0")
    trained = build(copy_block(spec, TINY_CONFIG, "up.1.attentions.1"), whole)
    shipped = classes["EvolvedUNet"].from_config(trained.config)
    shipped.load_state_dict(trained.state_dict())
    assert torch.equal(shipped.eval()(*tiny_inputs()).sample, trained(*tiny_inputs()).sample)


@torch.no_grad()
def test_the_decoder_is_the_one_that_was_trained(classes: dict[str, Any]) -> None:
    trained = SmallDecoder.cut_from(tiny_vae(), width_fraction=0.5).eval()
    shipped = classes["SmallDecoder"].from_config(trained.config).eval()
    shipped.load_state_dict(trained.state_dict())
    z = torch.randn(1, 4, 8, 8)
    assert torch.equal(shipped.decode(z).sample, trained.decode(z).sample)


def test_the_scheduler_steps_as_ours(classes: dict[str, Any]) -> None:
    z, output = torch.randn(2, 1, 4, 4, 4).unbind()
    made = []
    for kind in (GridDDIMScheduler, classes["GridDDIMScheduler"]):
        scheduler = kind(prediction_type="v_prediction")
        scheduler.set_timesteps(16)
        made.append([scheduler.step(output, t, z).prev_sample for t in scheduler.timesteps])
    assert torch.equal(torch.stack(made[0]), torch.stack(made[1]))


def test_what_is_saved_carries_its_own_source(classes: dict[str, Any], tmp_path: Path) -> None:
    classes["GridDDIMScheduler"]().save_pretrained(tmp_path)
    assert (tmp_path / "grid_ddim.py").read_text() == STANDALONE[2].source()


def test_two_definitions_of_one_name_do_not_fit_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "steps_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("def same() -> int:\n    return 1\n")
    (package / "two.py").write_text(
        "def same() -> int:\n    return 2\n\n\ndef uses() -> int:\n    return same()\n"
    )
    (package / "root.py").write_text(
        "from steps_of_a_test.one import same\nfrom steps_of_a_test.two import uses\n\n\n"
        "class Root:\n    value = same() + uses()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("steps.export.standalone._OWN", ("steps_of_a_test",))
    with pytest.raises(ExportError, match="define same; one file can hold one"):
        Standalone("root", "Made", "steps_of_a_test.root.Root", "A test.").source()
    with pytest.raises(ExportError, match="expected a definition of Missing"):
        Standalone("root", "Made", "steps_of_a_test.root.Missing", "A test.").source()
