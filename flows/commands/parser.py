"""The parser of every command: help as the module's docstring stands there, errors that name the nearest valid word."""

import argparse
import re
import sys
from typing import NoReturn

from flows.text import nearest

PROGRAM = "snapfusion"
# What argparse says of a word that it does not know, and of one that is none of the choices (3.11 to 3.14).
_UNKNOWN = re.compile(r"unrecognized arguments: (\S+)")
_NO_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


class CommandParser(argparse.ArgumentParser):
    """argparse's parser; a mistyped option or choice is answered with the nearest valid one. Ends with 2 then."""

    def error(self, message: str) -> NoReturn:
        """Print the message to standard error and end the program with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}{self._hint(message)}\n")

    def _hint(self, message: str) -> str:
        if choice := _NO_CHOICE.search(message):
            return nearest(choice[1], [word.strip("'\"") for word in choice[2].split(", ")])
        if (unknown := _UNKNOWN.search(message)) and unknown[1].startswith("-"):
            return nearest(unknown[1].split("=")[0], self._option_string_actions)
        return ""


def command_parser(name: str, description: str | None) -> CommandParser:
    """The parser of `snapfusion <name>`; `description` is the module's docstring, shown as it stands there."""
    return CommandParser(
        prog=f"{PROGRAM} {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_of(module: str) -> str:
    """What a module of `flows.commands` is called on the command line: flows.commands.draw_bundle is draw-bundle."""
    return module.rpartition(".")[2].replace("_", "-")
