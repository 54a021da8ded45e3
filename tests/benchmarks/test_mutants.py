"""Mutants change arithmetic, comparisons, conditions and constants, one at a time, and leave messages alone."""

import ast
from pathlib import Path

from benchmarks.mutants import mutants_of, source_of

SOURCE = """
def clipped(x: int | None, low: float = 0.5, *, keep=True) -> float:
    if not keep or x is None:
        raise ValueError(f"expected {1 + 1} numbers, found " + str(x - 1))
    return x * 2 if x > low else -low
"""


def test_each_mutant_changes_one_thing(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    found = mutants_of(tmp_path, Path("module.py"))
    assert sorted(mutant.id.split("` ")[1].rpartition(" at ")[0] for mutant in found) == sorted(
        [
            "0.5 -> 1.0", "True -> False", "without Not", "Is -> IsNot", "Or -> And", "Mult -> Div", "2 -> 3",
            "Gt -> GtE", "without USub",
        ]
    )  # fmt: skip
    codes = {source_of(tmp_path, mutant) for mutant in found}
    assert len(codes) == len(found)
    assert ast.unparse(ast.parse(SOURCE)) not in codes


def test_a_mutant_computes_something_else(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    results = set()
    for mutant in mutants_of(tmp_path, Path("module.py")):
        if "2 -> 3" in mutant.id or "Mult -> Div" in mutant.id:
            names: dict[str, object] = {}
            exec(source_of(tmp_path, mutant), names)  # noqa: S102 - the point
            results.add(names["clipped"](8))  # type: ignore[operator]
    assert results == {24, 4.0}
