"""What tells this machine's processor from others, for times that are measured on it. Imports no torch."""

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# x86 has a name; ARM numbers for who made which part; RISC-V and POWER words of their own.
_NAME = "model name"
_NUMBERS = ("CPU implementer", "CPU part", "CPU variant", "CPU revision", "uarch", "isa", "cpu")


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or what stands for one; of a machine that tells neither, its own name.

    Two unlike processors never share one: a table that one has measured is not another's.
    """
    if sys.platform == "darwin":
        told = _told_by_macos()
    else:
        told = _told_by(cpuinfo.read_text(encoding="utf-8").splitlines()) if cpuinfo.is_file() else ""
    return told or f"{platform.machine()} of {platform.node()}"


def _told_by(lines: Iterable[str]) -> str:
    pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]
    names = [value for name, value in pairs if name == _NAME and value]
    if names:
        return names[0]
    # Large and small cores have numbers of their own: every kind counts, in the order they are listed.
    return ", ".join(dict.fromkeys(f"{name} {value}" for name, value in pairs if name in _NUMBERS and value))


def _told_by_macos() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
