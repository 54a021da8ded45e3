"""Shows, compares and checks configurations.

    snapfusion config show --preset sd15                       # everything that a run with it would use, as TOML
    snapfusion config show --config mine.toml --set run.seed=3
    snapfusion config diff openmoji openmoji_full              # only what differs; presets or files
    snapfusion config check mine.toml other.toml               # 1 when one is refused, with the key and the nearest valid one
    snapfusion config schema > configuration.schema.json       # for editors that complete TOML
    snapfusion config reference                                # docs/configuration.md

What every key means: docs/configuration.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from artifacts_schema.config import InvalidConfig, parse_config
from flows.commands.configuration import add_config_options, chosen, to_toml
from flows.commands.parser import command_parser
from flows.environment import CODE_ROOT
from flows.presets import differences, read_source
from flows.text import table


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("config", __doc__)
    rooms = parser.add_subparsers(dest="what", required=True)
    show = rooms.add_parser("show", help="the resolved configuration")
    add_config_options(show)
    show.add_argument("--json", action="store_true", help="JSON instead of TOML")
    diff = rooms.add_parser("diff", help="what differs between two presets or files")
    diff.add_argument("a")
    diff.add_argument("b")
    diff.add_argument("--json", action="store_true", help="JSON: key to both values")
    check = rooms.add_parser("check", help="say whether files are valid")
    check.add_argument("files", nargs="+", metavar="FILE")
    rooms.add_parser("schema", help="print the JSON Schema")
    reference = rooms.add_parser("reference", help="print the page of all keys")
    reference.add_argument("--write", action="store_true", help="write page and schema to docs/ instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and print; 1 when a configuration is refused."""
    options = build_parser().parse_args(arguments)
    try:
        return _WORK[options.what](options)
    except (InvalidConfig, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _show(options: argparse.Namespace) -> int:
    values = chosen(options).model_dump(mode="json")
    print(json.dumps(values, indent=2) if options.json else to_toml(values).rstrip("\n"))
    return 0


def _diff(options: argparse.Namespace) -> int:
    sides = [parse_config(read_source(side)).model_dump(mode="json") for side in (options.a, options.b)]
    found = differences(*sides)
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(table([("", options.a, options.b), *((key, *map(_word, values)) for key, values in found.items())]))
    return 0


def _word(value: object) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def _check(options: argparse.Namespace) -> int:
    refused = 0
    for file in options.files:
        try:
            parse_config(read_source(Path(file)))
            print(f"{file}: valid")
        except InvalidConfig as error:
            refused = 1
            print(f"{file}: {error}", file=sys.stderr)
    return refused


def _schema(_: argparse.Namespace) -> int:
    from artifacts_schema.config_reference import json_schema

    print(json_schema(), end="")
    return 0


def _reference(options: argparse.Namespace) -> int:
    from artifacts_schema.config_reference import json_schema, page

    if not options.write:
        print(page(), end="")
        return 0
    for name, text in (("configuration.md", page()), ("configuration.schema.json", json_schema())):
        path = CODE_ROOT / "docs" / name
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


_WORK = {"show": _show, "diff": _diff, "check": _check, "schema": _schema, "reference": _reference}

if __name__ == "__main__":
    sys.exit(main())
