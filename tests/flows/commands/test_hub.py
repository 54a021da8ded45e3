"""Publishing a student and fetching it, against a stand-in for the hub's HTTP interface on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.export.diffusers_folder import modules
from tests.flows.hub_stand_in import TOKEN, Hub, hub_stand_in

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_stand_in() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a student's folder is to a hub: a small file of each kind, and one that goes by LFS."""
    folder = tmp_path_factory.mktemp("published")
    module, text = modules()["EvolvedUNet"]
    (folder / "unet").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# A student\n")
    (folder / "unet" / f"{module}.py").write_text(text)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(os.urandom(6_000_000))
    return folder


def command(
    work: Path, hub: Hub | str, name: str, *arguments: str, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    """A command of `flows.commands` with the stand-in as its hub."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "SNAPFUSION_HOME": str(work / "home"), "HF_HOME": str(work / "hf"),
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", f"flows.commands.{name}", *arguments],
        cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_what_was_published_is_fetched(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.repositories["me/student"] = {"of_an_earlier_version.py": b"pass"}
    done = command(tmp_path, hub, "publish", str(folder), "me/student")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/me/student"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.repositories["me/student"] == files
    hub.repositories["me/student"]["unet/diffusion_pytorch_model.bin"] = b"a pickle"
    done = command(tmp_path, hub, "fetch", "me/student", token="")
    assert done.returncode == 0, done.stderr
    there = tmp_path / "student"
    assert done.stdout.strip() == str(there)
    fetched = {
        p.relative_to(there).as_posix(): p.read_bytes()
        for p in there.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }
    assert fetched == files


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (("fetch", "me/missing"), TOKEN, "has no model repository me/missing"),
        (("fetch", "not a name"), TOKEN, "expected owner/name of a model repository, found 'not a name'"),
        (("publish", "FOLDER", "me/student"), "", "takes a token of the hub, found none; log in with"),
        (("publish", "FOLDER", "me/student"), "hf_wrong", "(401); the token may not write there"),
        (("publish", "HOME", "me/student"), TOKEN, "expected the folder of a student"),
    ],
    ids=["unknown name", "no name", "no token", "wrong token", "no student"],
)
def test_errors_are_one_sentence(
    hub: Hub, folder: Path, tmp_path: Path, arguments: tuple[str, ...], token: str, message: str
) -> None:
    places = {"FOLDER": str(folder), "HOME": str(tmp_path)}
    done = command(tmp_path, hub, *(places.get(word, word) for word in arguments), token=token)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("fetch", "me/student"), ("publish", "FOLDER", "me/student")], ids=["fetch", "publish"]
)
def test_a_hub_that_cannot_be_reached(folder: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    words = [str(folder) if word == "FOLDER" else word for word in arguments]
    done = command(tmp_path, "http://127.0.0.1:9", *words)
    assert done.returncode == 1
    assert "could not be reached" in done.stderr and "Traceback" not in done.stderr
