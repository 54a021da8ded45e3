"""What a round keeps on disk: damage is recognised, and the work is done again or taken from the mirror."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts_schema.architecture import EvolutionRound
from steps.evolution.kept import ProbeFile, load_round, save_round
from steps.files.errors import DiskFullError, StoreError
from steps.inputs.context import StageContext
from steps.unet.evolved import EvolvedUNet
from tests.factories import context, tiny_unet
from tests.steps.store.test_disk_faults import child
from tests.steps.training.test_checkpoint_damage import FolderMirror

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def mirrored(folder: Path) -> StageContext:
    return replace(context(folder), mirror=FolderMirror(folder.parent / "mirror"))


def spoil(path: Path, damage: Damage) -> None:
    path.write_bytes(damage(path.read_bytes()))


@pytest.fixture
def unet() -> EvolvedUNet:
    return EvolvedUNet.from_unet(tiny_unet())


def finished_round(unet: EvolvedUNet) -> EvolutionRound:
    return EvolutionRound(
        index=0,
        layout_before=unet.spec.stages,
        baseline_score=0.1 + 0.2,
        drift=0.0,
        scores=(),
        actions=(),
        predicted_before=1.0,
        predicted_after=1.0,
        trained_iterations=3,
        curve=({"iteration": 1.0, "loss": 1 / 3},),
    )


def test_probes_of_another_architecture_are_not_reused(tmp_path: Path) -> None:
    stage = context(tmp_path)
    path = stage.work / "round_0" / "probes.json"
    ProbeFile(stage, path, "one").add("all", [0.5])
    assert ProbeFile(stage, path, "one").scores == {"all": [0.5]}
    assert ProbeFile(stage, path, "another").scores == {}


@damages
def test_damaged_probes_count_as_absent(
    tmp_path: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = context(tmp_path)
    path = stage.work / "probes.json"
    ProbeFile(stage, path, "one").add("all", [0.5])
    spoil(path, damage)
    assert ProbeFile(stage, path, "one").scores == {}
    assert "is damaged" in caplog.text


@damages
def test_damaged_probes_are_taken_from_the_mirror(tmp_path: Path, damage: Damage) -> None:
    stage = mirrored(tmp_path / "disk")
    path = stage.work / "round_0" / "probes.json"
    ProbeFile(stage, path, "one").add("all", [0.5])
    spoil(path, damage)
    assert ProbeFile(stage, path, "one").scores == {"all": [0.5]}
    spoil(tmp_path / "mirror" / "round_0" / "probes.json", damage)
    spoil(path, damage)
    assert ProbeFile(stage, path, "one").scores == {}


def test_a_round_is_found_as_it_was_kept(tmp_path: Path, unet: EvolvedUNet) -> None:
    stage = context(tmp_path)
    finished = finished_round(unet)
    assert load_round(stage, stage.work / "round_0", unet.spec) is None
    save_round(stage, stage.work / "round_0", unet, finished)
    found = load_round(stage, stage.work / "round_0", unet.spec)
    assert found is not None
    assert found[1] == finished
    assert all(torch.equal(value, found[0].state_dict()[name]) for name, value in unet.state_dict().items())


@damages
@pytest.mark.parametrize(
    "name", ["round.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_a_damaged_round_counts_as_absent(
    tmp_path: Path, unet: EvolvedUNet, name: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = mirrored(tmp_path / "disk")
    folder = stage.work / "round_0"
    save_round(stage, folder, unet, finished_round(unet))
    spoil(folder / name, damage)
    assert load_round(stage, folder, unet.spec) is not None  # from the mirror
    assert caplog.text.count("is damaged") == 1
    for place in (folder, tmp_path / "mirror" / "round_0"):
        spoil(place / name, damage)
    assert load_round(stage, folder, unet.spec) is None


def test_a_round_without_its_weights_counts_as_absent(tmp_path: Path, unet: EvolvedUNet) -> None:
    stage = context(tmp_path)
    save_round(stage, stage.work / "round_0", unet, finished_round(unet))
    shutil.rmtree(stage.work / "round_0" / "unet")
    assert load_round(stage, stage.work / "round_0", unet.spec) is None


def test_a_round_that_began_with_another_architecture_is_not_used(
    tmp_path: Path, unet: EvolvedUNet, caplog: pytest.LogCaptureFixture
) -> None:
    stage = context(tmp_path)
    other = finished_round(unet).model_copy(update={"layout_before": unet.spec.stages[:-1]})
    save_round(stage, stage.work / "round_0", unet, other)
    assert load_round(stage, stage.work / "round_0", unet.spec) is None
    assert "began with another architecture" in caplog.text


def test_a_store_that_fails_is_not_damage(
    tmp_path: Path, unet: EvolvedUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = mirrored(tmp_path / "disk")
    save_round(stage, stage.work / "round_0", unet, finished_round(unet))
    shutil.rmtree(stage.work / "round_0")

    def fails(name: str, path: Path) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(FolderMirror, "fetch", lambda mirror, name, path: fails(name, path))
        failure: Exception = StoreError("no answer")
        with pytest.raises(StoreError, match="no answer"):
            load_round(stage, stage.work / "round_0", unet.spec)
        failure = OSError(28, "no space left on device")
        with pytest.raises(DiskFullError, match="round_0; free some and resume"):
            load_round(stage, stage.work / "round_0", unet.spec)


@pytest.mark.parametrize(
    "action",
    [
        "save_round(stage, stage.work / 'round_0', unet, finished_round(unet))",
        "ProbeFile(stage, stage.work / 'round_0' / 'probes.json', 'one').add('all', [0.5] * (1 << 16))",
    ],
    ids=["round", "probes"],
)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, action: str) -> None:
    code = (
        "from pathlib import Path; from steps.files.errors import DiskFullError\n"
        "from tests.steps.evolution.test_kept import *\n"
        f"stage = context(Path({str(tmp_path)!r})); unet = EvolvedUNet.from_unet(tiny_unet())\n"
        f"try:\n    {action}\nexcept DiskFullError as error:\n    print(error)"
    )
    said = child(code, file_limit=1 << 16)
    assert "no space left for" in said
    assert f"in {tmp_path}/work/" in said and "/round_0; free some and resume" in said
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []
