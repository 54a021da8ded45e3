"""What commands on models and bundles share: a prepared environment, paths, one sentence for an error.

A command imports this before anything of `steps`, which the alphabet sees to: transformers must find no model hub, and
coremltools says at its first import that this is no Mac.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from artifacts_schema.config import InvalidConfig
from flows.commands.parser import CommandParser
from flows.environment import prepare_paths
from flows.text import printable
from steps.files.errors import SnapFusionError

_CALLED_FROM = Path.cwd()
prepare_paths()
logging.getLogger("coremltools").setLevel(logging.ERROR)


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring, as it stands there, under the name that it was called by."""
    return CommandParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def as_called(path: Path) -> Path:
    """A path of the command line: the environment has another working directory since."""
    return (_CALLED_FROM / path).resolve()


def write_as_called(path: Path, content: bytes) -> None:
    """Write a file that the command line names, in a folder that may not be there yet, and say where it is."""
    target = as_called(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    print(target)


def exit_code(work: Callable[[], None]) -> int:
    """0 when `work` is done, 1 after saying what was wrong."""
    try:
        work()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        raise
    except (SnapFusionError, InvalidConfig, OSError) as error:
        # A name in it may be somebody else's: a terminal obeys none of it.
        print("\n".join(map(printable, f"error: {error}".splitlines())), file=sys.stderr)
        return 1
    return 0
