"""Small mistakes in a module's source: one change each of arithmetic, a comparison, a condition or a constant."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One mistake; `id` says where and what, and stays the same when other lines of the module change."""

    path: Path  # relative to the repository
    number: int  # among the module's mutants
    id: str

    @property
    def module(self) -> str:
        """The module's dotted name."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def mutants_of(root: Path, path: Path) -> list[Mutant]:
    """All mutants of a module."""
    source = (root / path).read_text(encoding="utf-8")
    mutator, lines = _Mutator(None), source.splitlines()
    mutator.visit(ast.parse(source))
    return [
        Mutant(path, number, f"{path}: `{lines[line - 1].strip()}` {change} at {column}")
        for number, (line, column, change) in enumerate(mutator.found)
    ]


def source_of(root: Path, mutant: Mutant) -> str:
    """The module with the mistake."""
    tree = _Mutator(mutant.number).visit(ast.parse((root / mutant.path).read_text(encoding="utf-8")))
    return ast.unparse(ast.fix_missing_locations(tree))


class _Mutator(ast.NodeTransformer):
    """Counts every possible change and makes the chosen one."""

    def __init__(self, chosen: int | None) -> None:
        self.chosen = chosen
        self.found: list[tuple[int, int, str]] = []

    def _offer(self, node: Any, field: str, other: Any, change: str) -> None:
        self.found.append((node.lineno, node.col_offset, change))
        if len(self.found) - 1 == self.chosen:
            setattr(node, field, other)

    def _arithmetic(self, node: Any) -> Any:
        self.generic_visit(node)
        other = _ARITHMETIC.get(type(node.op))
        if other is not None and not _is_no_number(getattr(node, "right", None)):
            self._offer(node, "op", other(), f"{type(node.op).__name__} -> {other.__name__}")
        return node

    visit_BinOp = visit_AugAssign = _arithmetic

    def visit_Compare(self, node: ast.Compare) -> Any:
        self.generic_visit(node)
        for place, op in enumerate(node.ops):
            other = _COMPARISONS[type(op)]
            ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
            self._offer(node, "ops", ops, f"{type(op).__name__} -> {other.__name__}")
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        self._offer(node, "op", other(), f"{type(node.op).__name__} -> {other.__name__}")
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not | ast.USub):
            self._offer(
                node, "operand", ast.UnaryOp(node.op, node.operand), f"without {type(node.op).__name__}"
            )
        return node

    def _condition(self, node: Any) -> Any:
        """Comparisons and `not` have changes of their own that amount to the opposite."""
        self.generic_visit(node)
        if not isinstance(node.test, ast.Compare | ast.UnaryOp | ast.BoolOp):
            self._offer(node, "test", ast.UnaryOp(ast.Not(), node.test), "condition -> its opposite")
        return node

    visit_If = visit_IfExp = visit_While = _condition

    def visit_Constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, bool):
            self._offer(node, "value", not value, f"{value} -> {not value}")
        elif isinstance(value, int | float):
            other = value + 1 if isinstance(value, int) else value * 2 or 1.0
            self._offer(node, "value", other, f"{value} -> {other}")
        return node

    def visit_Expr(self, node: ast.Expr) -> Any:
        function = node.value.func if isinstance(node.value, ast.Call) else None
        logs = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "logger"
        return node if logs else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.value = self.visit(node.value) if node.value else None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.args.defaults = [self.visit(each) for each in node.args.defaults]
        node.args.kw_defaults = [each and self.visit(each) for each in node.args.kw_defaults]
        node.body = [self.visit(each) for each in node.body]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.body = [self.visit(each) for each in node.body]
        return node

    def _unchanged(self, node: Any) -> Any:
        return node

    visit_Raise = visit_Assert = visit_JoinedStr = _unchanged  # messages


def _is_no_number(node: ast.expr | None) -> bool:
    """What stands right of `|` in a union of types, or of `/` in a path."""
    name = getattr(node, "id", getattr(node, "attr", ""))
    text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    return text or name[:1].isupper() or (isinstance(node, ast.Constant) and node.value is None)
