"""Scheduled retraining with the real flow: new data, the same data, and a champion that stays."""

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from steps.registry.champion import champion_history
from steps.store import LocalStore
from tests.flows.launched import ROOT, SMOKE, Ended, report, run

UNIT = ROOT / "infra" / "schedule" / "snapfusion-retrain.service"
COLORS = ("red", "green", "blue", "black", "orange", "purple", "brown", "pink")
SHAPES = ("circle", "square", "bar", "line", "ring", "cross")
SIZES = ("tiny", "small", "large", "huge", "wide")


def draw_shard(path: Path, names: list[str]) -> None:
    """Simple shapes on white, named by their captions."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            size, color, shape = name.split()
            radius = 6 + 5 * SIZES.index(size)
            image = Image.new("RGB", (64, 64), "white")
            box = (32 - radius, 32 - radius // (1 + SHAPES.index(shape) % 3), 32 + radius, 32 + radius)
            pen = ImageDraw.Draw(image)
            (pen.ellipse if SHAPES.index(shape) % 2 else pen.rectangle)(box, fill=color)
            picture = io.BytesIO()
            image.save(picture, "PNG")
            for ending, data in (("png", picture.getvalue()), ("txt", name.encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def told() -> Iterator[tuple[str, list[Any]]]:
    """A webhook's address and what it was told."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nobody looks."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", bodies
    server.shutdown()
    server.server_close()


def configured(folder: Path, address: str, shards: str, margin: float) -> Path:
    """The smoke preset on shards of our own, gated; a margin of 0 wants a run that is clearly better."""
    text = re.sub(r"\[data\]\nlimit = \d+", f'[data]\nsource = "webdataset"\nshards = ["{folder}/{shards}.tar"]\n'
                  f'held_out_from = ["{folder}/a.tar"]', SMOKE.read_text())  # fmt: skip
    text = re.sub(
        r"variants = .*", 'variants = ["base_50", "student_8_small_decoder"]\nsplit = "validation"', text
    )
    text += f'[notify]\nwebhook = "{address}"\n[promotion]\nenabled = true\nallow_smoke = true\nrequire_licence = false\n'
    text += f"distance_margin = {margin}\nclip_margin = {margin}\n"
    path = folder / f"{shards.replace('{', '').replace('}', '')}-{margin}.toml"
    path.write_text(text)
    return path


def by_unit(home: Path, config: Path) -> Ended:
    """The ExecStart line of the systemd unit, with the paths of this machine."""
    line = re.search(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert line is not None
    places = {"/opt/snapfusion/.venv/bin/python": sys.executable, "/etc/snapfusion/retrain.toml": str(config)}
    words = [places.get(word, word) for word in shlex.split(line[1])]
    return subprocess.run(
        words,
        cwd=ROOT,  # the unit's WorkingDirectory
        env={"SNAPFUSION_HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )


def outcome(ended: Ended) -> str:
    """The line that says what became of the champion."""
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    found = re.search(r"(promoted|unchanged|kept): .*", ended.stdout)
    assert found is not None
    return found[0]


@pytest.mark.long
def test_retraining_three_ways(tmp_path: Path, told: tuple[str, list[Any]]) -> None:
    address, bodies = told
    names = [f"{size} {color} {shape}" for size in SIZES for color in COLORS for shape in SHAPES]
    draw_shard(tmp_path / "a.tar", names[::2] + names[1:40:2])
    draw_shard(tmp_path / "b.tar", names[41::2])
    home = tmp_path / "home"
    old = configured(tmp_path, address, "a", 100.0)
    first = run(home, "--config", "config", str(old), "run")
    assert "in the place of no champion" in outcome(first)
    champion = Path(report(home)["folder"]).name

    # Unchanged: everything from the cache, and the champion is the same thing.
    same = by_unit(home, old)
    assert outcome(same).startswith("unchanged: ")
    assert all(stage["cached"] for stage in report(home)["stages"])

    # New shards: what depends on them is done again, on the same validation pictures; the run passes.
    new = run(home, "--config", "config", str(configured(tmp_path, address, "{a,b}", 100.0)), "run")
    newest = Path(report(home)["folder"]).name
    assert outcome(new) == f"promoted: run {newest} is the champion, in the place of run {champion}"
    again = {stage["stage"] for stage in report(home)["stages"] if not stage["cached"]}
    assert {"start", "velocity_finetuning", "student_8"} <= again and "latency_profile" not in again
    assert f"the tag 'champion' is on run {newest}" in new.stdout

    # Changed back, all from the cache: not clearly better than the champion, which stays.
    kept = run(home, "--config", "config", str(configured(tmp_path, address, "a", 0.0)), "run")
    assert outcome(kept).startswith(f"kept: run {newest} stays champion, because of ")
    assert all(stage["cached"] for stage in report(home)["stages"])

    assert [body["event"] for body in bodies] == ["promoted", "unchanged", "promoted", "kept"]
    assert [body["champion"] for body in bodies] == [champion, champion, newest, newest]
    store = LocalStore(home / ".snapfusion" / "store")
    assert [event.run for event in champion_history(store).events] == [champion, newest]


@pytest.mark.long
def test_a_failed_run_is_told(tmp_path: Path, told: tuple[str, list[Any]]) -> None:
    address, bodies = told
    ended = run(
        tmp_path / "home", "--config", "config", str(configured(tmp_path, address, "none", 1.0)), "run"
    )
    assert ended.returncode != 0
    (body,) = bodies
    assert (body["event"], body["step"], body["flow"]) == ("failed", "start", "SnapFusionFlow")
    assert f"shard {tmp_path}/none.tar does not exist" in body["text"]
