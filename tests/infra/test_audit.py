"""The dependency audit tells advisories from an audit that could not take place, and both from one that failed."""

import json
import sys

import pytest

from infra import audit

REPORT = {
    "dependencies": [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]},
        {"name": "ours", "skip_reason": "not on the index"},
    ]
}


def run(monkeypatch: pytest.MonkeyPatch, program: str) -> int:
    """The audit with another program in pip-audit's place."""
    monkeypatch.setattr(audit, "COMMAND", [sys.executable, "-c", program])
    return audit.main()


@pytest.mark.parametrize(
    ("report", "status", "said"),
    [(REPORT, 1, "bad 2: PYSEC-1, fixed in 3"), ({"dependencies": []}, 0, "no known advisory")],
    ids=["found", "none"],
)
def test_audit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: dict[str, object],
    status: int,
    said: str,
) -> None:
    assert run(monkeypatch, f"print({json.dumps(report)!r}); raise SystemExit({status})") == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "program",
    [
        "raise TypeError('pip-audit is broken')",
        "import sys; sys.exit('No module named pip_audit')",
        "import os; os.abort()",
        "pass",
    ],
    ids=["error", "not installed", "killed", "silent"],
)
def test_an_audit_that_crashes_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    assert run(monkeypatch, program) == 1
    assert "dependency audit: failed, pip-audit ended with status" in capsys.readouterr().out


def test_an_audit_that_hangs_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "_LIMIT_S", 0.5)
    assert run(monkeypatch, "import time; time.sleep(60)") == 1
    assert "did not end within" in capsys.readouterr().out


def test_no_network_is_said_and_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):  # the real program, with nobody at the other end
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert audit.main() == 0
    assert "not checked: no network" in capsys.readouterr().out
