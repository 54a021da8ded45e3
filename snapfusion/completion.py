"""Prints a script that completes commands, options and their choices with the tab key.

    snapfusion completion bash > ~/.local/share/bash-completion/completions/snapfusion
    snapfusion completion zsh  > ~/.zfunc/_snapfusion        # with fpath+=~/.zfunc before compinit
    snapfusion completion tcsh > ~/.snapfusion.tcsh          # and `source` it in ~/.tcshrc

Made once, from all commands' parsers, which takes some seconds; completing then starts no program. Make it again after an
update.
"""

import argparse
import sys
from importlib import import_module

import shtab

from flows.commands.parser import PROGRAM, CommandParser, command_parser
from snapfusion.command import COMMANDS


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("completion", __doc__)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """All commands as one parser, for shtab."""
    whole = CommandParser(prog=PROGRAM)
    rooms = whole.add_subparsers()
    for name, command in COMMANDS.items():
        try:
            own = [import_module(command.module).build_parser()]
        except ModuleNotFoundError:  # needs an extra that is not installed: without its options
            own = []
        rooms.add_parser(name, parents=own, add_help=not own, help=command.summary)
    return whole


def script(shell: str) -> str:
    """The shell's script."""
    text: str = shtab.complete(whole_parser(), shell)
    return text


def main() -> int:
    """Print the script."""
    sys.stdout.write(script(build_parser().parse_args().shell) + "\n")
    return 0
