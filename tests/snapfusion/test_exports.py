"""`import snapfusion`: what it offers is there, and nothing is loaded before it is asked for."""

import subprocess
import sys

import pytest

import snapfusion


@pytest.mark.parametrize(
    "name",
    snapfusion.__all__,
)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(snapfusion, name).__doc__


def test_importing_it_loads_nothing() -> None:
    code = (
        "import sys, snapfusion; assert snapfusion.__all__ == dir(snapfusion);"
        "print(sorted({'torch', 'pydantic', 'pandas', 'flows', 'steps'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


def test_a_name_that_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Runs'; it has: .*Run, "):
        _ = snapfusion.Runs


def test_metaflows_typing_does_not_keep_torch_from_being_imported() -> None:
    code = "import typing_extensions, metaflow._vendor.typeguard, snapfusion; print(snapfusion.GridDDIMScheduler.__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "GridDDIMScheduler\n"
