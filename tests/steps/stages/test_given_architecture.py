"""An architecture that is given is built, trained and recorded; nothing is searched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts_schema.architecture import GivenArchitecture
from artifacts_schema.stage_configs import ArchitectureEvolutionConfig
from steps.files.errors import ArchitectureError
from steps.models.base import BaseModel
from steps.models.stored import load_model, save_model
from steps.stages import given_architecture
from steps.stages.given_architecture import given_spec, train_given
from steps.unet.architecture import SNAPFUSION_SD15_COPIED, SNAPFUSION_SD15_REMOVED, remove_unit
from steps.unet.blocks import full_spec
from tests.factories import stage_context, tiny_base, two_level_unet
from tests.steps.diffusion.fakes import SD_SCHEDULE, FakeData


def base() -> BaseModel:
    """A narrow base of Stable Diffusion 1.5's topology."""
    found = tiny_base()
    found.scheduler_config.update(SD_SCHEDULE)
    return found


class Captioned(FakeData):
    """Of the base's text width."""

    def embeddings(self, split: str, indices: torch.Tensor) -> torch.Tensor:
        return super().embeddings(split, indices)[:, :1, :1].expand(-1, 7, 12)


def config(**changes: Any) -> ArchitectureEvolutionConfig:
    training = {"iterations": 2, "batch_size": 2, "held_out_checks": 1}
    return ArchitectureEvolutionConfig.model_validate(
        {"architecture": "snapfusion-sd15", "training": training} | changes
    )


def test_the_papers_unet_is_built_trained_and_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    original = given_architecture.held_out_loss

    def watched(words: str, loss: Any, *arguments: Any, **named: Any) -> Any:
        checked.append((loss.probability, loss.sampling.split, *arguments))
        return original(words, loss, *arguments, **named)

    monkeypatch.setattr(given_architecture, "held_out_loss", watched)
    given, context = base(), stage_context(tmp_path, "architecture_evolution")
    start = save_model(context.store, given.unet, schema="diffusers.UNet2DConditionModel")
    data = Captioned(samples=8, shape=given.latent_shape, empty_embedding=torch.zeros(1, 7, 12))
    record = train_given(given, start, data, config(), context)
    assert checked == [(0.0, "validation", data.size("validation"))]
    spec = record.architecture
    removed = {block for unit in SNAPFUSION_SD15_REMOVED for block in unit.split("+")}
    assert set(spec.removed) == removed
    assert {copy.removesuffix(".copy1") for copy in spec.copied} == set(SNAPFUSION_SD15_COPIED)
    assert record.latency_budget is None and record.rounds == () and record.iterations == 2
    assert record.selection is not None and record.selection.candidates[0].iteration == 0
    assert 0 < record.predicted_ratio < 1 and record.latency_unit == "MAC"
    unet = load_model(context.store, record.weights)
    assert unet.spec.layout() == spec.layout()
    assert sum(p.numel() for p in unet.parameters()) == record.parameters != record.base_parameters


def test_one_from_a_file_must_be_of_this_base() -> None:
    given = base()
    spec = remove_unit(full_spec(given.unet.config), given.unet.config, "mid.attentions.0", name="mine")
    fields = {"name": spec.name, "base_config": spec.base_config, "stages": spec.stages}
    assert given_spec(config(architecture=GivenArchitecture(**fields)), given) == spec
    other = GivenArchitecture(**fields | {"base_config": "0" * 64})
    with pytest.raises(ArchitectureError, match="belongs to the base config 000000000000"):
        given_spec(config(architecture=other), given)


def test_a_base_of_another_topology_is_named() -> None:
    small = replace(base(), unet=two_level_unet())
    with pytest.raises(
        ArchitectureError, match="needs a base of Stable Diffusion 1.5's topology: no removable unit"
    ):
        given_spec(config(), small)
