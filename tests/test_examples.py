"""The examples in the documents run: Python as it stands, commands as far as their help knows every option."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef
from steps.export.diffusers_folder import diffusers_folder
from steps.models.base import load_base
from steps.models.base_folder import put_model_folder
from steps.models.stored import save_model
from steps.pretraining.micro import write_micro_base
from steps.store import LocalStore
from steps.store.base import get_folder
from steps.unet.conversion import as_evolved
from steps.unet.small_decoder import SmallDecoder

ROOT = Path(__file__).resolve().parent.parent
RECORDS = Path(__file__).parent / "fixtures" / "records"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = "1700000000000000"
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_FLOW = """
from metaflow import FlowSpec, step

class SnapFusionFlow(FlowSpec):
    @step
    def start(self):
        self.report_record = {"name": "an example", "headline": {}}
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    SnapFusionFlow()
"""


def _blocks(language: str) -> Iterator[tuple[Path, str]]:
    for path in DOCUMENTS:
        for indent, found, text in _BLOCK.findall(path.read_text(encoding="utf-8")):
            if found == language:
                yield path, "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))


def _python(*arguments: str, home: Path) -> str:
    """What Python prints, given the folder where it stands and where runs leave everything."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("METAFLOW")}
    variables |= {
        "SNAPFUSION_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "METAFLOW_USER": "tester",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=variables,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _newest(name: str) -> dict[str, object]:
    record: dict[str, object] = json.loads(sorted(RECORDS.glob(f"{name}_v*.json"))[-1].read_text())
    return record


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a finished run of micro models in the store, and one that Metaflow knows."""
    home = tmp_path_factory.mktemp("home")
    base = load_base(write_micro_base(home / "base"))
    store = LocalStore(home / ".snapfusion" / "store")
    torch.manual_seed(0)
    models: dict[str, tuple[str, torch.nn.Module]] = {
        "student_8": ("snapfusion.EvolvedUNet", as_evolved(base.unet)),
        "decoder_distillation": (
            "snapfusion.SmallDecoder",
            SmallDecoder.cut_from(base.vae, width_fraction=0.5),
        ),
    }
    report = _newest("report")
    inputs = dict(report["inputs"])  # type: ignore[call-overload]
    refs = {name: save_model(store, model, schema=schema) for name, (schema, model) in models.items()}
    for name, weights in refs.items():
        record = read_record(json.dumps(_newest("training"))).model_copy(update={"weights": weights})
        inputs[name] = record.identity()
        store.put_document(f"records/{inputs[name]}", record.to_json())
    student = FolderRef(
        files=diffusers_folder(
            store,
            put_model_folder(store, base.path),
            unet=refs["student_8"],
            decoder=refs["decoder_distillation"],
        )
    )
    get_folder(store, student, home / "student")
    outputs = FolderRef(files={f"student/{name}": ref for name, ref in student.files.items()})
    report |= {"outputs": outputs.model_dump(mode="json")}
    config = report["config"] | {"base": {"path": str(home / "base")}}  # type: ignore[operator]
    store.put_document(f"reports/{RUN}", json.dumps(report | {"inputs": inputs, "config": config}))
    (home / "flow.py").write_text(_FLOW)
    _python("flow.py", "run", home=home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [pytest.param(code, id=f"{path.name} {number}") for number, (path, code) in enumerate(_blocks("python"))],
)
def test_python_examples_run(code: str, home: Path) -> None:
    before = set(home.iterdir())
    said = _python("-c", code, home=home)
    if ".save(" in code:
        (picture,) = (path for path in set(home.iterdir()) - before if path.suffix == ".png")
        with Image.open(picture) as image:
            assert image.size == (64, 64)
    else:
        assert "an example" in said


def _commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Module and options of every command of flows/ and infra/ that a block without a language shows."""
    for _, text in _blocks(""):
        for line in text.replace("\\\n", " ").splitlines():
            found = re.match(r"\S*python3? -m ((?:flows|infra)\.[\w.]+)(.*)", line.split(" #")[0])
            if found:
                yield found[1], tuple(re.findall(r"(?<= )--[\w-]+", found[2]))


@cache
def _help(program: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        return _python("-m", program, "--help", home=Path(home))


@pytest.mark.slow
@pytest.mark.parametrize(("program", "options"), sorted(set(_commands())))
def test_commands_know_the_options_they_are_shown_with(program: str, options: tuple[str, ...]) -> None:
    known = set(re.findall(r"--[\w-]+", _help(program)))
    assert not set(options) - known
