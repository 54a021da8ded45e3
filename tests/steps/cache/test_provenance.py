"""Which code and which packages a record names."""

import os
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from artifacts_schema.report import CodeVersion
from steps.cache import provenance
from steps.cache.provenance import DISTRIBUTION, code_version, package_versions

ROOT = Path(__file__).resolve().parents[3]
VERSION = version(DISTRIBUTION)


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True, text=True, check=True, env=variables,
    ).stdout.strip()  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that looks like this one."""
    root = tmp_path / "checkout"
    for name in ("flows", "steps/cache", "artifacts_schema"):
        (root / name).mkdir(parents=True)
        (root / name / "provenance.py").write_text("pass\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "x")
    return root


def test_a_checkout_names_its_commit(checkout: Path) -> None:
    found = code_version(checkout)
    assert found == CodeVersion(version=VERSION, commit=git(checkout, "rev-parse", "HEAD"), dirty=False)
    assert found.text == f"{VERSION}+g{found.commit}"


def test_a_hook_of_another_repository_changes_nothing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert code_version(checkout).commit == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [("steps/cache/provenance.py", True), ("flows/new.py", True), ("picture.png", False)],
    ids=["tracked", "untracked", "no code"],
)
def test_changed_code_is_dirty(checkout: Path, changed: str, dirty: bool) -> None:
    (checkout / changed).write_text("changed\n")
    found = code_version(checkout)
    assert found.dirty is dirty and found.text.endswith(".dirty") is dirty


def test_an_installation_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / ".gitignore").write_text(".venv/\n")
    installed = checkout / ".venv" / "site-packages"
    (installed / "steps").mkdir(parents=True)
    (installed / "steps" / "provenance.py").touch()
    assert code_version(installed) == CodeVersion(version=VERSION)


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_version(checkout) == CodeVersion(version=VERSION)


def test_every_dependency_is_named() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        lines = tomllib.load(file)["project"]["dependencies"]
    assert {line.split(">")[0] for line in lines} | {"python"} == set(package_versions())
    assert package_versions()["emoji"] == version("emoji")


def test_a_program_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DISTRIBUTION", "no-such-package")
    assert set(package_versions()) == {"python"}
    assert code_version(Path("/")).text == "0"
