"""The plugin for the Metaflow UI, in a browser, over a backend that answers as the real one does (version 2.5.1)."""

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

PLUGIN = Path(__file__).parents[2] / "infra" / "metaflow_ui" / "installed" / "comparison"
PAGE = (PLUGIN / "index.html").read_text(encoding="utf-8")
CHROMIUM = shutil.which("chromium")
RUNS = "document.documentElement.setAttribute('ran','yes')"
HOSTILE = f'<img src=x onerror="{RUNS}"> <script>{RUNS}</script> & &lt;b&gt; it\'s \\ {{}} ( ,)'
READY = {
    "type": "ReadyToRender",
    "config": {"name": "Comparison"},
    "resource": {"flow_id": "SnapFusionFlow", "run_number": "5"},
}
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)


def run(number: int, *tags: str, status: str = "completed", branch: str = "user.dev") -> dict[str, Any]:
    return {
        "flow_id": "SnapFusionFlow", "run_number": number, "run_id": None, "ts_epoch": 1_790_000_000_000 + number,
        "status": status, "duration": 3_725_000, "tags": list(tags), "system_tags": [f"project_branch:{branch}"],
    }  # fmt: skip


class Backend:
    """What the UI's backend answers: runs, and for each run its configuration and artifacts as Python writes them."""

    def __init__(
        self, runs: list[dict[str, Any]], configs: Mapping[int, Any], artifacts: Mapping[int, dict[str, Any]]
    ) -> None:
        self.runs, self.configs, self.artifacts = runs, configs, artifacts

    def answer(self, path: str, query: Mapping[str, list[str]]) -> Any:
        """The answer's `data`, or None for a run or path that is not there."""
        parts = path.strip("/").split("/")
        if parts[0] != "flows":
            return None
        if len(parts) == 3:
            return self._filtered(query)
        number = int(parts[3])
        rest = "/".join(parts[4:])
        if not rest:
            return next((run for run in self.runs if run["run_number"] == number), None)
        if rest == "parameters":
            return {"config": {"value": self.configs[number]}} if number in self.configs else None
        if rest == "artifacts":
            wanted = query["name:eq"][0].split(",")
            found = self.artifacts.get(number, {})
            return [{"name": name, "content": str(found[name])} for name in wanted if name in found]
        return [{"task_id": 77}] if rest == "steps/report/tasks" and number in self.artifacts else []

    def _filtered(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        found = sorted(self.runs, key=lambda run: -run["ts_epoch"])
        if "_tags" in query:
            found = [run for run in found if query["_tags"][0] in run["tags"]]
        if "ts_epoch:lt" in query:
            found = [run for run in found if run["ts_epoch"] < int(query["ts_epoch:lt"][0])]
        if "status:eq" in query:
            found = [run for run in found if run["status"] == query["status:eq"][0]]
        return found[: int(query["_limit"][0])]


@contextmanager
def served(backend: Backend) -> Iterator[str]:
    """The address of the plugin's page, under a prefix as in a deployment with the API under /api."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/api/plugin/Comparison/index.html":
                # Opened by itself, the page is its own parent: it gets the message that the UI would send.
                self._send(200, "text/html", PAGE + f"<script>postMessage({json.dumps(READY)}, '*')</script>")
                return
            data = backend.answer(url.path.removeprefix("/api"), parse_qs(url.query))
            self._send(404 if data is None else 200, "application/json", json.dumps({"data": data}))

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/plugin/Comparison/index.html?v=1.0.0"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(backend: Backend, folder: Path) -> str:
    """The page as Chromium has it once everything has been read, up to its script."""
    assert CHROMIUM
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    with served(backend) as address:
        found = subprocess.run(
            [CHROMIUM, *arguments, "--virtual-time-budget=5000", "--dump-dom", address],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
    return found.stdout.split("<script>")[0]


def text(markup: str) -> str:
    """Its words, as a person reads them."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def rows(document: str) -> dict[str, list[str]]:
    """The table's rows: the words of their cells, by those of the first."""
    cells = (
        [text(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", document, re.DOTALL)
    )
    return {row[0]: row[1:] for row in cells}


RATIO = {"ratio": [2.5, None, None]}
BACKEND = Backend(
    [
        run(1, "name:old", "champion"),
        run(2, "name:smoke one", "smoke"),
        run(3, "name:other branch", branch="test.other"),
        run(4, "name:before", "#before", "student_8.learning_rate:1e-4", "distance:0.3"),
        run(5, "name:this", "preset:openmoji", "cost:1.20 EUR"),
        run(6, "name:later"),
    ],
    {
        5: {"run": {"seed": 1}, "student_8": {"learning_rate": 2e-4}},
        4: {"run": {"seed": 1}, "student_8": {"learning_rate": 1e-4}},
    },
    {
        5: {
            "headline": {"size": 3, "distance": [0.12346, 0.1, 0.15], "psnr": [6, 5, 9]} | RATIO,
            "verdict": "better: it's nearer",
        },
        4: {"headline": {"distance": [0.3, 0.25, float("nan")], "clip": (None,), "psnr": [9, 8, 12]} | RATIO},
        1: {
            "headline": {"distance": (1e-05, 5e-06, 2e-05)} | RATIO,
            "config_changes": {"student_8.learning_rate": 1e-05},
        },
    },
)


@pytest.mark.long
@in_a_browser
def test_a_run_stands_beside_the_champion_and_the_runs_before_it(tmp_path: Path) -> None:
    document = opened(BACKEND, tmp_path)
    found = rows(document)
    # This run, the champion, one earlier: neither smoke runs, nor those of another branch, nor later ones.
    assert found[""] == ["this run this run 5", "champion old run 1", "earlier before run 4"]
    assert "better: it's nearer" in text(document.split('id="table"')[0])
    assert found["state"] == ["completed, 1 h 2 min 5 s"] * 3
    assert found["cost"] == ["1.20 EUR", "", ""]
    assert found["tags"] == ["preset:openmoji", "champion", "distance:0.3"]
    assert found["distance"] == ["0.1235 [0.1, 0.15]", "0.00001 ▼ [0.000005, 0.00002]", "0.3"]
    assert found["psnr"] == ["6 [5, 9]", "", "9 [8, 12]"]  # they overlap
    assert found["size"] == ["3", "", ""]
    assert found["the same in all"] == ["ratio 2.5"]
    assert found["student_8.learning_rate"] == ["0.0002", "0.00001", "0.0001"]
    assert "run.seed" not in found  # alike where it is known
    assert 'href="http://127.0.0.1:' in document and '/SnapFusionFlow/5/report/77"' in document
    assert "python flows/compare_flow.py run --runs 5,champion" in text(document)


@pytest.mark.long
@in_a_browser
def test_foreign_text_is_shown_as_text(tmp_path: Path) -> None:
    backend = Backend(
        [run(4, "champion", f"name:{HOSTILE}"), run(5, HOSTILE, f"cost:{HOSTILE}")],
        {5: {HOSTILE: HOSTILE}, 4: {HOSTILE: 1}},
        {
            5: {"headline": {HOSTILE: [1, 0, 2]}, "verdict": HOSTILE},
            4: {"config_changes": {HOSTILE: HOSTILE}},
        },
    )
    document = opened(backend, tmp_path)
    assert not re.search(r"<html[^>]* ran=", document)
    assert "<img" not in document
    # Tag, cost, verdict, the champion's name, the headline's name, a key; its value is shown as JSON.
    shown = text(document.split('id="verdict"')[1])
    assert shown.count(" ".join(HOSTILE.split())) == 6
    assert shown.count(" ".join(json.dumps(HOSTILE).split())) == 1


@pytest.mark.long
@in_a_browser
@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (
            Backend([run(4, "champion"), run(5, "smoke", status="running")], {}, {}),
            "There is neither a champion nor an earlier run like it.",
        ),
        (Backend([], {}, {}), "The runs cannot be read: flows/SnapFusionFlow/runs/5 answered 404."),
    ],
    ids=["nothing yet", "no such run"],
)
def test_a_run_without_anything_and_a_backend_that_fails_say_so(
    tmp_path: Path, backend: Backend, said: str
) -> None:
    assert said in text(opened(backend, tmp_path))


def test_the_page_is_whole_and_writes_no_markup() -> None:
    manifest = json.loads((PLUGIN / "manifest.json").read_text())
    assert manifest["slot"] == "run-header" and (PLUGIN / manifest["entrypoint"]).is_file()
    # The UI would replace the head of the page otherwise.
    assert manifest["useApplicationStyles"] is False
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", PAGE)
    # Nothing is loaded from anywhere.
    assert not re.search(r"\bsrc=|<link|@import|url\(", PAGE)
