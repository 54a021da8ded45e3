"""The wheel, installed into an environment of its own and used from another folder: it holds what it needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from steps.stages.versions import source_hash

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("snapfusion", "flows", "steps", "artifacts_schema", "infra", "configs", "assets/latency_tables")
_UV = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
_IMPORT_ALL = """
import importlib, pkgutil, warnings
warnings.simplefilter("ignore")
for package in ("artifacts_schema", "steps", "infra", "flows", "snapfusion"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "vl_convert":  # of the extra `pretrain`
                raise
        assert "site-packages" in importlib.util.find_spec(package).origin
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to stand in."""

    wheel: Path
    python: Path
    folder: Path

    def run(
        self, *arguments: str, program: str = "python", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A program of that environment, in that folder; of this process's surroundings it sees nothing."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("METAFLOW", "PYTHON", "SNAPFUSION"))}
        done = subprocess.run(
            [str(self.python.with_name(program)), *arguments],
            cwd=self.folder, env=kept, capture_output=True, text=True, timeout=1200, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done


def _uv(*arguments: str) -> None:
    """From uv's cache, or else from the package index."""
    assert _UV, "expected uv beside this Python, found none: `make install` puts it there"
    offline = subprocess.run([_UV, *arguments, "--offline"], capture_output=True, check=False)
    if offline.returncode:
        subprocess.run([_UV, *arguments], check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files beside the source
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "assets/LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    _uv("build", "--quiet", "--wheel", "--out-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    _uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    python = folder / "venv" / "bin" / "python"
    _uv(
        "pip", "install", "--quiet", "--python", str(python), "--link-mode", "symlink",
        "--constraint", str(ROOT / "constraints.txt"), str(wheel),
    )  # fmt: skip
    (folder / "elsewhere").mkdir()
    return Installed(wheel, python, folder / "elsewhere")


@pytest.mark.long
def test_the_wheel_holds_every_file_of_its_packages(installed: Installed) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"assets/LICENSE"}  # the package's licence files travel beside what they cover
    with zipfile.ZipFile(installed.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


@pytest.mark.long
def test_every_module_can_be_imported_without_the_extras(installed: Installed) -> None:
    installed.run("-c", _IMPORT_ALL)


@pytest.mark.long
def test_the_installed_flow_is_shown_and_knows_its_presets(installed: Installed) -> None:
    assert "student_8" in installed.run("-m", "flows.snapfusion_flow", "show").stdout
    assert "resume" in installed.run("-m", "flows.snapfusion_flow", "--help").stdout
    where = installed.run("-c", "import configs; print(*configs.__path__)").stdout.strip()
    preset = str(Path(where) / "smoke.toml")
    installed.run("-m", "flows.snapfusion_flow", "--config", "config", preset, "show")


@pytest.mark.long
def test_an_installed_program_finds_the_latency_tables_that_came_with_it(installed: Installed) -> None:
    code = (
        "from artifacts_schema.config import parse_config; from flows.runtime import with_table_found\n"
        "named = {'latency_profile': {'table': 'assets/latency_tables/published_snapfusion.json'}}\n"
        "print(with_table_found(parse_config(named)).latency_profile.table)"
    )
    found = Path(installed.run("-c", code).stdout.strip())
    assert found.is_file() and not found.is_relative_to(ROOT)  # a link leads into uv's cache


@pytest.mark.long
def test_the_installed_command_is_on_the_path_and_knows_its_presets(installed: Installed) -> None:
    shown = installed.run("config", "show", "--preset", "smoke", program="snapfusion")
    assert 'path = "micro"' in shown.stdout
    done = installed.run("doctor", "--quick", program="snapfusion", check=False)
    assert done.returncode == 1, done.stdout + done.stderr  # the included models come with a clone
    assert "copy assets/ of a clone" in done.stdout


@pytest.mark.long
def test_an_installed_program_knows_its_stages_and_no_commit(installed: Installed) -> None:
    code = (
        "from steps.cache.provenance import code_version; from steps.stages.versions import source_hash\n"
        "from flows.environment import PROJECT_ROOT\n"
        "print(source_hash('student_8'), repr(code_version().commit), PROJECT_ROOT)"
    )
    assert installed.run("-c", code).stdout.split() == [source_hash("student_8"), "''", str(installed.folder)]


@pytest.mark.long
def test_an_installed_flow_without_models_says_where_they_are(installed: Installed) -> None:
    done = installed.run("-m", "flows.snapfusion_flow", "run", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert str(installed.folder / "assets" / "base") in said
    assert "clone of the repository" in said
