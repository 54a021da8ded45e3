"""The schedule of one machine: units and crontab say the same, and what they start exists."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "schedule"
UNIT = "snapfusion-retrain"


def test_units_and_crontab_start_the_same() -> None:
    unit = re.search(r"^ExecStart=(.+)$", (FOLDER / f"{UNIT}.service").read_text(), re.MULTILINE)
    assert unit is not None
    started = shlex.split(unit[1].replace("/opt/snapfusion/", ""))
    (line,) = [line for line in (FOLDER / "crontab").read_text().splitlines() if line[:1].isdigit()]
    assert " ".join(started) in line
    assert line.startswith("0 3 * * 1 ")  # OnCalendar=Mon 03:00
    assert "OnCalendar=Mon *-*-* 03:00:00" in (FOLDER / f"{UNIT}.timer").read_text()
    assert (ROOT / started[1]).is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's own check is not at hand")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for kind in ("service", "timer"):
        text = (FOLDER / f"{UNIT}.{kind}").read_text()
        text = text.replace("/opt/snapfusion/.venv/bin/python", sys.executable).replace(
            "User=snapfusion\n", ""
        )
        (tmp_path / f"{UNIT}.{kind}").write_text(text.replace("/opt/snapfusion", str(ROOT)))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / f"{UNIT}.timer"), str(tmp_path / f"{UNIT}.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
