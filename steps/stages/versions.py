"""Version of every stage, part of its cache key.

A stage's version goes up when its source changes in a way that changes its result. `versions.json` holds, for
each stage, the version and a hash of the source it was given for: of the stage's module and of everything that module
imports from steps/ and artifacts_schema/. A test compares; after a change run

    python -m steps.stages.versions            # shows which stages changed
    python -m steps.stages.versions --raise    # new version for each of them
    python -m steps.stages.versions --keep     # the change cannot alter any result: same versions, new hashes
"""

import argparse
import ast
import hashlib
import json
import sys
from pathlib import Path

from steps.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("versions.json")
_PACKAGES = ("steps", "artifacts_schema")


def stage_version(stage: str) -> int:
    """The stage's version; KeyError for an unknown stage."""
    return int(json.loads(FILE.read_text())[stage]["version"])


def source_hash(stage: str) -> str:
    """SHA-256 over the syntax trees of the stage's module and of all it imports; comments and layout do not count."""
    return module_hash(STAGES[stage].import_name)


def module_hash(name: str) -> str:
    """The same of any module of this project."""
    digest = hashlib.sha256()
    for path in sorted(_closure(name)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        _drop_docstrings(tree)
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def changed_stages() -> list[str]:
    """Stages whose source is not the one their version was given for."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    return [stage for stage in STAGES if known.get(stage, {}).get("source") != source_hash(stage)]


def _closure(module: str) -> set[Path]:
    """Files of a module and of everything it imports, directly or not, from this project's own packages."""
    found: set[Path] = set()
    pending = [module]
    while pending:
        path = _path_of(pending.pop())
        if path is None or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                pending += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                pending += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    # What a configuration may hold is not a stage's source: its own section is part of the cache key anyway.
    return {
        path
        for path in found
        if path.name not in ("config.py", "stage_configs.py", "ranges.py", "resources.py", "versions.py")
    }


def _path_of(module: str) -> Path | None:
    if module.split(".")[0] not in _PACKAGES:
        return None
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]


def main() -> None:
    """Command line: show, raise or keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--raise", dest="new", action="store_true", help="give every changed stage a new version"
    )
    choice.add_argument("--keep", action="store_true", help="keep versions, accept the changed source")
    arguments = parser.parse_args()
    changed = changed_stages()
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for stage in changed:
        sys.stdout.write(f"changed: {stage}\n")
        version = known.get(stage, {}).get("version", 0)
        if arguments.new or not version:
            version += 1
        known[stage] = {"version": version, "source": source_hash(stage)}
    if arguments.new or arguments.keep:
        FILE.write_text(json.dumps({k: known[k] for k in STAGES}, indent=2) + "\n")


if __name__ == "__main__":
    main()
