"""Unlike processors never share a name, or one's latency table would be taken for another's."""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steps.files.processor import processor_name

# Of /proc/cpuinfo: the lines of one core that tell processors apart, and some that do not.
X86 = "processor : 0\nmodel name : AMD EPYC 7B13\ncpu MHz : 2449.998\n"
GRAVITON_2 = "processor : 0\nBogoMIPS : 243.75\nCPU implementer : 0x41\nCPU part : 0xd0c\nCPU revision : 1\n"
GRAVITON_3 = GRAVITON_2.replace("0xd0c", "0xd40")
PHONE = GRAVITON_2 + GRAVITON_3


@pytest.fixture
def name_of(tmp_path: Path) -> Callable[[str], str]:
    def name(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        return processor_name(tmp_path / "cpuinfo")

    return name


def test_unlike_processors_have_unlike_names(
    name_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")  # what Python says of every ARM
    names = [name_of(text) for text in (X86, GRAVITON_2, GRAVITON_3, PHONE)]
    assert len(set(names)) == 4
    assert names[0] == "AMD EPYC 7B13"


def test_a_core_more_or_its_clock_is_no_other_processor(name_of: Callable[[str], str]) -> None:
    assert name_of(X86) == name_of(X86 + X86.replace("2449.998", "3000.0"))
    assert name_of(GRAVITON_2) == name_of(GRAVITON_2 * 2)


def test_a_machine_that_tells_nothing_shares_with_no_other(
    name_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = name_of("")
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    assert name_of("") != first


def test_a_mac_is_asked_for_its_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        stdout = "Apple M2 Max\n"

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("steps.files.processor.subprocess.run", lambda *_, **__: Answer())
    assert processor_name() == "Apple M2 Max"
