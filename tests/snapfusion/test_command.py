"""The command: every word leads to a module, help is quick, what is mistyped is answered with what was meant."""

import subprocess
import sys
from importlib import import_module
from typing import NoReturn

import pytest

from snapfusion import command, completion
from snapfusion.command import COMMANDS, Command, main

_HEAVY = {"torch", "metaflow", "pydantic", "pandas", "boto3", "flows.environment"}


@pytest.mark.parametrize(
    "name",
    COMMANDS,
)
def test_every_command_is_a_module_with_help_and_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"snapfusion {name}"])
    module = import_module(COMMANDS[name].module)
    usage, _, rest = module.build_parser().format_help().partition("\n\n")
    assert callable(module.main)
    assert usage.startswith(f"usage: snapfusion {name} ")
    assert f"snapfusion {name} " in rest or f"snapfusion {name}\n" in rest, "no example"


def test_help_loads_nothing_and_names_every_command() -> None:
    code = (
        "import sys; from snapfusion.command import main; code = main(['--help']);"
        f"print(code, sorted({_HEAVY!r} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "0 []"
    assert not [name for name in COMMANDS if f"\n  {name} " not in said]


def test_without_a_word_the_help_is_shown_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: snapfusion COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rnus"], "there is no command 'rnus'; did you mean 'runs'?"),
        (["xyzzy"], "`snapfusion --help` lists them"),
        (["run", "--preset", "smke"], "did you mean 'smoke'?"),
        (["run", "--dryrun"], "unrecognized arguments: --dryrun; did you mean '--dry-run'?"),
        (["resume", "studnt_8"], "did you mean 'student_8'?"),
        (["config", "shwo"], "did you mean 'show'?"),
    ],
)
def test_a_mistyped_word_is_a_usage_error_that_names_the_nearest(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["snapfusion"])  # restored afterwards: a command is called by it
    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    assert meant in capsys.readouterr().err


class Failing:
    """A command that ends in a way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self) -> NoReturn:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ModuleNotFoundError("No module named 'gradio'", name="gradio"), 1, "needs the package 'gradio'"),
    ],
    ids=["Ctrl-C", "a package is missing"],
)
def test_how_a_command_ends(
    error: BaseException, code: int, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["snapfusion"])
    monkeypatch.setitem(COMMANDS, "failing", Command("failing", ""))
    monkeypatch.setattr(command, "import_module", lambda _: Failing(error))
    assert main(["failing"]) == code
    found = capsys.readouterr().err
    assert said in found
    assert "Traceback" not in found


def test_the_reader_of_a_pipe_may_go() -> None:
    code = (
        "import sys, types; from snapfusion import command;"
        "command.import_module = lambda _: types.SimpleNamespace(main=lambda: print('x' * 200_000) or 0);"
        "sys.exit(command.main(['runs']))"
    )
    shell = f'"{sys.executable}" -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stdout == "x"
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["snapfusion completion", shell])
    assert completion.main() == 0
    script = capsys.readouterr().out
    assert not [name for name in COMMANDS if name not in script]
    for word in ("--preset", "openmoji_full", "--guidance-scale", "student_16"):
        assert word in script


def test_a_bash_completes_what_was_begun() -> None:
    """The script in a real shell: `snapfusion ru` and `snapfusion run --preset s`."""
    script = completion.script("bash")
    ask = (
        "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=();"
        "_shtab_snapfusion; echo ${{COMPREPLY[@]}}"
    )
    for words, found in (("snapfusion ru", "run runs"), ("snapfusion run --preset sm", "smoke")):
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask.format(words=words)}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == found.split(), done.stderr
