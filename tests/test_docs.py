"""What the documents say about this repository is true: links, presets and names of tests exist."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest

from snapfusion.command import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
_OWN_MODULES = ("snapfusion", "flows", "steps", "artifacts_schema", "infra", "benchmarks")
_SKIPPED = {".venv", ".git", ".snapfusion", ".metaflow"}
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _files(*suffixes: str) -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in suffixes
        and not (_SKIPPED | {"node_modules"}) & set(path.relative_to(ROOT).parts)
        and not any(part.endswith("_cache") for part in path.relative_to(ROOT).parts)
        and path.is_file()
    )


MARKDOWN = _files(".md")


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _anchors(path: Path) -> set[str]:
    """Anchors of a file's headings, as GitHub makes them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+\s+(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=_id)
def test_relative_links_resolve(path: Path) -> None:
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    broken = []
    for match in _LINK.finditer(text):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        missing_anchor = (
            anchor and target.suffix == ".md" and target.exists() and anchor not in _anchors(target)
        )
        if not target.exists() or not target.is_relative_to(ROOT) or missing_anchor:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", MARKDOWN, ids=_id)
def test_named_presets_exist(path: Path) -> None:
    named = set(re.findall(r"configs/\w+\.toml", path.read_text(encoding="utf-8")))
    assert not sorted(name for name in named if not (ROOT / name).is_file())


def test_readme_lists_every_preset() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [
        preset.name for preset in (ROOT / "configs").glob("*.toml") if f"configs/{preset.name}" not in text
    ]


@cache
def _defined_tests() -> set[str]:
    sources = (ROOT / "tests").rglob("test_*.py")
    return {
        name
        for source in sources
        for name in re.findall(r"^\s*def (test_\w+)", source.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("path", MARKDOWN, ids=_id)
def test_named_tests_exist(path: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", path.read_text(encoding="utf-8")))
    assert not sorted(named - _defined_tests())


@pytest.mark.parametrize("path", MARKDOWN, ids=_id)
def test_named_modules_programs_and_targets_exist(path: Path) -> None:
    """What `python -m`, `python <file>` and `make` are given, anywhere in a document."""
    text = path.read_text(encoding="utf-8")
    modules = {
        name for name in re.findall(r"python3? -m ([\w.]*\w)", text) if name.split(".")[0] in _OWN_MODULES
    }
    assert not sorted(name for name in modules if importlib.util.find_spec(name) is None)
    files = set(re.findall(r"python3? ((?:flows|steps|infra)/[\w/]+\.py)", text))
    assert not sorted(name for name in files if not (ROOT / name).is_file())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE))
    assert not sorted(named - targets)


@pytest.mark.parametrize("path", MARKDOWN, ids=_id)
def test_named_commands_exist(path: Path) -> None:
    """What follows `snapfusion` in a line of code or in backquotes."""
    named = set(
        re.findall(r"(?:^|`)snapfusion ([a-z][\w-]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert not sorted(named - COMMANDS.keys())


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_published_numbers_name_the_commit_of_their_file() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Published numbers", 1)[1]
    named = re.findall(r"`(\w+\.json)` (\w{7}) \|$", table, re.MULTILINE)
    assert len(named) == table.split("\n\n**", 1)[0].count("\n| ") - 1  # every row but the head
    wrong = [
        name
        for name, commit in named
        if not json.loads((ROOT / "benchmarks/results" / name).read_text())["commit"].startswith(commit)
    ]
    assert not wrong


def test_missing_numbers_of_decisions_are_explained() -> None:
    folder = ROOT / "docs" / "adr"
    numbers = {int(page.name[:4]) for page in folder.glob("0*.md")}
    index = (folder / "README.md").read_text(encoding="utf-8")
    gaps = set(range(1, max(numbers))) - numbers
    assert not [number for number in gaps if f"| {number:04} |" not in index]


def test_every_row_of_the_fault_table_names_a_test() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## What bad input gets", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert not [row for row in rows if not re.search(r"`test_\w+`", row.rsplit("|", 2)[1])]


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in folder.glob("0*.md") if f"({page.name})" not in index]


def test_nothing_refers_to_files_outside_the_repository() -> None:
    outside = "../" + "shared"  # not written in one piece, or this file would be found
    files = _files(".md", ".py", ".toml", ".json", ".sh", ".swift", ".yaml", ".yml")
    assert not [_id(path) for path in files if outside in path.read_text(encoding="utf-8", errors="replace")]


def test_pictures_that_are_shown_are_described() -> None:
    for path in MARKDOWN:
        for description in re.findall(r"!\[([^\]]*)\]\(", path.read_text(encoding="utf-8")):
            assert description.strip(), (
                f"{_id(path)} shows a picture without a text for those who cannot see it"
            )
