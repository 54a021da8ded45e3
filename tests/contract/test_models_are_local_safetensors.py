"""No model is loaded from pickled weights or from a hub, wherever in the program it is loaded."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# They have no weights.
_WITHOUT_WEIGHTS = ("CLIPTokenizer", "config_class")


def calls() -> Iterator[tuple[str, dict[str, str]]]:
    """Place and keywords of every call of `from_pretrained` on a model."""
    for path in sorted((*ROOT.glob("steps/**/*.py"), *ROOT.glob("flows/**/*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).split(".")[-1]
                if node.func.attr == "from_pretrained" and owner not in _WITHOUT_WEIGHTS:
                    keywords = {str(item.arg): ast.unparse(item.value) for item in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", keywords


@pytest.mark.parametrize(("place", "keywords"), list(calls()))
def test_models_are_loaded_from_local_safetensors(place: str, keywords: dict[str, str]) -> None:
    assert keywords.get("use_safetensors") == "True", place
    assert keywords.get("local_files_only") == "True", place
