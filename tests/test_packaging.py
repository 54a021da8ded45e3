"""What is imported is declared, and where it is declared; what is published about the package agrees with it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_OWN = {"snapfusion", "flows", "steps", "artifacts_schema", "infra", "benchmarks", "tests", "configs"}
_CLUSTER = ("flows/remote_settings.py",)
_PRETRAINING = ("steps/pretraining", "steps/stages/pretraining.py", "flows/pretrain_flow.py")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared(*extras: str) -> set[str]:
    lines = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    return {_normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def _sources(*names: str, without: Iterable[str] = ()) -> Iterator[Path]:
    for name in names:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            # measure_on_mac.py runs on a Mac, with what it finds there.
            if (
                not file.relative_to(ROOT).as_posix().startswith(tuple(without))
                and file.name != "measure_on_mac.py"
            ):
                yield file


def _imported(files: Iterable[Path]) -> set[str]:
    """Modules of others; of a namespace such as google, the first two names."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] not in _OWN | sys.stdlib_module_names}


def _undeclared(modules: Iterable[str], declared: set[str]) -> list[str]:
    distributions = packages_distributions()
    missing = []
    for module in modules:
        top = module.split(".")[0]
        owners = {"protobuf"} if module.startswith("google.protobuf") else set(distributions.get(top, []))
        if not {_normal(name) for name in owners} & declared:
            missing.append(module)
    return sorted(missing)


@pytest.mark.parametrize(
    ("extras", "folders", "without"),
    [
        ((), ("snapfusion", "flows", "steps", "artifacts_schema"), (*_PRETRAINING, *_CLUSTER)),
        (("cluster",), _CLUSTER, ()),
        (("pretrain",), _PRETRAINING, ()),
        (("dev", "pretrain"), ("infra", "tests", "benchmarks"), ()),
    ],
    ids=["the pipeline needs no extra", "clusters", "pretraining", "development"],
)
def test_what_is_imported_is_declared(
    extras: tuple[str, ...], folders: tuple[str, ...], without: tuple[str, ...]
) -> None:
    modules = _imported(_sources(*folders, without=without))
    assert len(modules) > 3
    assert _undeclared(modules, _declared(*extras)) == []


def test_every_declared_package_is_pinned_by_the_constraints() -> None:
    pinned = {_normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    # `demo` has an environment of its own: Gradio allows no Pillow as new as the pinned one.
    assert _declared(*PROJECT["optional-dependencies"].keys() - {"demo"}) - pinned == set()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2306.00980"


def test_one_command_checks_everywhere() -> None:
    """The hook before a commit is `make check`, and the workflow runs what `.ci/run` runs."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [(repo["repo"], [hook["entry"] for hook in repo["hooks"]]) for repo in hooks] == [
        ("local", ["make check"])
    ]
    jobs = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())["jobs"]
    assert {"run": ".ci/run"} in jobs["linux"]["steps"]
    assert "not run by us" in jobs["macos"]["name"]
    called = re.findall(r"^make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert called == ["check", "test", "test-long"]
