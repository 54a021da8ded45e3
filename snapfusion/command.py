"""The command `snapfusion`: one table from words to modules. Nothing of a command is imported before it is asked for."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from flows.commands.parser import PROGRAM
from flows.text import nearest


@dataclass(frozen=True)
class Command:
    """A command: what it is for, in one line, and the module whose `main()` it is."""

    module: str
    summary: str


GROUPS: dict[str, dict[str, Command]] = {
    "make": {
        "run": Command("flows.commands.run", "start the pipeline, from a preset or a file"),
        "resume": Command("flows.commands.resume", "go on with a run where it stopped"),
        "rehearse": Command("flows.commands.rehearse", "what a real run will take, after minutes of it"),
        "encode": Command("flows.commands.encode", "encode shards of data, beside other workers"),
        "config": Command("flows.commands.config", "show, compare and check configurations"),
        "doctor": Command(
            "flows.commands.doctor", "what this machine can run, how long it takes, what is missing"
        ),
        "plan": Command("flows.commands.plan", "what a run takes on other hardware, stage by stage"),
        "zero-shot": Command(
            "flows.commands.zero_shot", "whether training pictures are among those that are measured on"
        ),
    },
    "look": {
        "runs": Command("flows.commands.runs", "the runs in a store, newest first"),
        "show": Command("flows.commands.show", "one run: numbers, stages, where everything is"),
        "compare": Command("flows.commands.compare", "runs side by side"),
        "trace": Command("flows.commands.trace", "from a bundle back to its data, code and configuration"),
        "outputs": Command("flows.commands.outputs", "fetch a run's bundle, report and pictures"),
    },
    "use": {
        "draw": Command("flows.commands.draw", "draw a picture with a run's models"),
        "draw-bundle": Command("flows.commands.draw_bundle", "draw with a Core ML bundle, on any machine"),
        "demo": Command("flows.commands.demo", "a page to try base and student side by side"),
        "promote": Command("flows.commands.promote", "make a run the champion"),
        "rollback": Command("flows.commands.rollback", "return to the champion before"),
        "publish": Command("flows.commands.publish", "put a student on a model hub"),
        "fetch": Command("flows.commands.fetch", "get a student from a model hub"),
        "export": Command(
            "flows.commands.export_blocks", "blocks as packages, for a Mac or an iPhone to time"
        ),
        "latency-table": Command(
            "flows.commands.latency_table", "a run's latency table, for other runs to name"
        ),
    },
    "store": {
        "fsck": Command("flows.commands.fsck", "check every byte of a store"),
        "collect": Command("flows.commands.collect", "remove what no kept run refers to"),
        "s3": Command("infra.s3.__main__", "policies for a bucket"),
        "s3-server": Command("infra.local.__main__", "an S3 server on this machine, to try it on"),
    },
    "shell": {
        "completion": Command("snapfusion.completion", "tab completion for bash, zsh or tcsh"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_HEAD = f"""usage: {PROGRAM} COMMAND [OPTIONS]

Makes a Stable-Diffusion-style model small and 8-step, with the evidence that it is as good.
"""
_TAIL = f"""
examples:
  {PROGRAM} doctor                                   what this machine can do
  {PROGRAM} run                                      the included model, from a fresh checkout
  {PROGRAM} run --preset smoke --set run.seed=3
  {PROGRAM} runs
  {PROGRAM} draw "woman surfing" --output surfing.png
  {PROGRAM} COMMAND --help                           options and examples of a command

exit codes: 0 done, 1 something went wrong (one line says what), 2 the command line was not understood,
130 stopped by Ctrl-C
"""


def help_text() -> str:
    """What `snapfusion --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [_HEAD]
    for title, group in GROUPS.items():
        lines += [
            f"{title}:",
            *(f"  {name:{width}}  {command.summary}" for name, command in group.items()),
            "",
        ]
    return "\n".join(lines) + _TAIL


def main(arguments: Sequence[str] | None = None) -> int:
    """Find the command and call its `main()`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(help_text())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"{PROGRAM} {version('snapfusion-pipeline')}\n")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        hint = nearest(words[0], COMMANDS) or f"; `{PROGRAM} --help` lists them"
        sys.stderr.write(f"error: there is no command '{words[0]}'{hint}\n")
        return 2
    sys.argv = [f"{PROGRAM} {words[0]}", *words[1:]]
    return _call(command)


def _call(command: Command) -> int:
    try:
        code: int = import_module(command.module).main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `snapfusion runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: {sys.argv[0]} needs the package '{error.name}', which is not installed; "
            f"`{PROGRAM} doctor` says how to get it\n"
        )
        return 1
    return code
