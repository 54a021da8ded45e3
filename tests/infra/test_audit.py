"""The dependency audit tells advisories from an audit that did not take place."""

import json
import subprocess
from typing import Any

import pytest

from infra import audit

REPORT = {
    "dependencies": [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]},
        {"name": "ours", "skip_reason": "not on the index"},
    ]
}


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        (json.dumps(REPORT), 1, "bad 2: PYSEC-1, fixed in 3"),
        (json.dumps({"dependencies": []}), 0, "no known advisory"),
        ("", 0, "not done"),
    ],
    ids=["found", "none", "no network"],
)
def test_audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, status: int, said: str
) -> None:
    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, stdout=output)

    monkeypatch.setattr(audit.subprocess, "run", answer)
    assert audit.main() == status
    assert said in capsys.readouterr().out
