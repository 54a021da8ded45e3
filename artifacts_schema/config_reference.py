"""What can be configured, as a page for people and a JSON Schema for editors, both from the models themselves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from artifacts_schema.config import SnapFusionConfig
from artifacts_schema.ranges import MOST

_LIMITS = {
    "minimum": "from {}",
    "exclusiveMinimum": "over {}",
    "maximum": "to {}",
    "exclusiveMaximum": "under {}",
}
_KEPT = {"title"}  # what pydantic adds to a schema that says nothing new


@dataclass(frozen=True)
class Key:
    """One key: where it is, what it means, in which unit, what it takes, its default and where that comes from."""

    section: str
    name: str
    meaning: str
    unit: str
    takes: str
    default: str
    origin: str


def keys(model: type[BaseModel] = SnapFusionConfig, section: str = "") -> Iterator[Key]:
    """Every key below a model that is no section, in the order of the models."""
    properties = model.model_json_schema(mode="validation").get("properties", {})
    for name, field in model.model_fields.items():
        path, inner = _inner(field, f"{section}.{name}" if section else name)
        if inner is not None:
            yield from keys(inner, path)
        else:
            yield _key(section, name, field, properties[name])


def _inner(field: FieldInfo, path: str) -> tuple[str, type[BaseModel] | None]:
    """The model of a section, one that may be left out included, or of every section of a table of sections.

    With the section's path; None for a key, one that takes a model beside other values included.
    """
    found = field.annotation
    parts = [part for part in get_args(found) if part is not NoneType]
    if get_origin(found) is dict:
        path, found = f"{path}.<name>", parts[1]
    elif len(parts) == 1 and get_origin(found) is not tuple:
        found = parts[0]
    return path, found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _key(section: str, name: str, field: FieldInfo, schema: dict[str, Any]) -> Key:
    extra = field.json_schema_extra
    told = extra if isinstance(extra, dict) else {}
    unit = str(told.get("unit", ""))
    default = "unset" if field.default is None else json.dumps(field.default, ensure_ascii=False, default=str)
    meaning, _, written = (field.description or "").removesuffix(f" [{unit}]").partition(" Origin: ")
    return Key(
        section, name, meaning, unit, takes(schema), default, str(told.get("origin", written.rstrip(".")))
    )


def takes(schema: dict[str, Any]) -> str:
    """The type and range of a value, for people."""
    if "anyOf" in schema:
        return " or ".join(takes(item) for item in schema["anyOf"] if item.get("type") != "null")
    if "$ref" in schema:
        return "table"
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "object":
        return f"table of ({takes(schema['additionalProperties'])}) by name"
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items") or schema["prefixItems"][0]
        count = f"{len(schema['prefixItems'])} " if "prefixItems" in schema else ""
        some = ", at least one" if schema.get("minItems") == 1 else ""
        return f"list of {count}({takes(items)}){some}"
    kind = {"integer": "whole number", "string": "text", "boolean": "true, false"}.get(
        schema["type"], "number"
    )
    limits = [
        words.format(f"{schema[name]:g}")
        for name, words in _LIMITS.items()
        if name in schema and abs(schema[name]) < MOST  # that one is only a guard against typing errors
    ]
    return f"{kind} {' '.join(limits)}".strip()


def json_schema() -> str:
    """JSON Schema (2020-12) of the configuration, for editors that complete TOML."""
    schema = _plain(SnapFusionConfig.model_json_schema())
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of the SnapFusion pipeline",
    }
    return json.dumps(head | schema, indent=1, ensure_ascii=False) + "\n"


def _plain(node: Any, *, names: bool = False) -> Any:
    """A schema without titles; `names` says that the keys of this level are names of fields."""
    if isinstance(node, dict):
        inner = {"properties", "$defs"}
        return {
            key: _plain(value, names=key in inner) for key, value in node.items() if names or key not in _KEPT
        }
    return [_plain(item) for item in node] if isinstance(node, list) else node


def page() -> str:
    """docs/configuration.md."""
    lines = [_HEAD]
    seen: dict[type[BaseModel], str] = {}
    for name, field in SnapFusionConfig.model_fields.items():
        path, model = _inner(field, name)
        assert model is not None, f"{name} is no section"
        _section(path, model, lines, seen)
    return "\n".join(lines)


def _section(path: str, model: type[BaseModel], lines: list[str], seen: dict[type[BaseModel], str]) -> None:
    """A heading and a table; a model that was shown before is referred to."""
    known = seen.setdefault(model, path)
    own = [key for key in keys(model) if not key.section]
    if known != path:
        lines += [f"## [{path}]", "", f"As [{known}](#{_anchor(known)}).", ""]
        return
    about = (model.__doc__ or "").strip().partition("\n")[0]
    lines += [f"## [{path}]", "", about, ""]
    if own:
        lines += ["| key | meaning | takes | default | origin |", "|---|---|---|---|---|"]
        lines += [_row(key) for key in own] + [""]
    for name, field in model.model_fields.items():
        below, inner = _inner(field, f"{path}.{name}")
        if inner is not None:
            _section(below, inner, lines, seen)


def _row(key: Key) -> str:
    cells = (
        f"`{key.name}`",
        key.meaning,
        f"{key.takes}; {key.unit}" if key.unit else key.takes,
        f"`{key.default}`",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, key.origin)) + " |"


def _anchor(path: str) -> str:
    """What GitHub makes of a heading [path]."""
    return path.translate(str.maketrans("", "", ".<>"))


_HEAD = """# Configuration

Every key of a preset or of a file of your own. What is not set has the default given here. Origin is the default's: "P" is
the SnapFusion paper (arXiv 2306.00980v3), "ours" means that the paper gives none. This page and
[configuration.schema.json](configuration.schema.json) are made from `artifacts_schema/` by
`snapfusion config reference --write`, and a test holds them to it.

```
snapfusion config show --preset sd15                 # everything that a run with it would use
snapfusion config diff openmoji openmoji_full        # what differs
snapfusion config check mine.toml                    # is it valid?
snapfusion run --config mine.toml --set run.seed=3
```

An editor with [taplo](https://taplo.tamasfe.dev) (VS Code: Even Better TOML) completes keys and shows their meaning in a
file whose first line is `#:schema <path to configuration.schema.json>`, as in the presets; `snapfusion config schema`
prints that file.
"""
