"""A finished run out of its store, and the commands that show runs."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts_schema.config import load_config_file
from artifacts_schema.readers import read_record
from artifacts_schema.references import FolderRef
from artifacts_schema.run_configs import StoreConfig
from flows.commands import runs, show
from flows.presets import FOLDER
from flows.run import Run, all_runs, store_at
from flows.runs import named_report
from steps.files.errors import SnapFusionError, StoreError
from steps.store import LocalStore

RECORDS = Path(__file__).parents[1] / "fixtures" / "records"
NAME = "\x1b[31mred <b>"


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), color).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _nothing_ever_ran_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that only looks at a store: Metaflow's own folder is not there."""
    monkeypatch.setattr("flows.runs.WORK_ROOT", tmp_path / "home")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """With two runs: `new` is the later, with a grid, an evolution in ms and a name that a terminal would obey."""
    store = LocalStore(tmp_path / "store")
    report: Any = read_record((RECORDS / "report_v1.json").read_text())
    evolution: Any = read_record((RECORDS / "evolution_v1.json").read_text())
    evolution = evolution.model_copy(update={"latency_unit": "ms", "predicted_latency": 23.4})
    store.put_document(f"records/{evolution.identity()}", evolution.to_json())
    config = load_config_file(FOLDER / "smoke.toml").model_dump(mode="json")
    config["run"] |= {"name": NAME, "seed": 3}
    config["store"]["root"] = "elsewhere"
    changes = {
        "name": NAME,
        "config": config,
        "headline": {"student8_vs_base50.distance_ratio": 1.25, "coreml.unet.size_mib": 5.0, "coreml.vae_decoder.size_mib": 1.5},
        "inputs": {"architecture_evolution": evolution.identity()},
        "grids": {"base_50": store.put_bytes(png("red"))},
        "outputs": FolderRef(files={"bundle/manifest.json": store.put_bytes(b"{}")}),
    }  # fmt: skip
    for age, (run, update) in enumerate((("new", changes), ("old", {}))):
        folder = {"folder": f"/elsewhere/{run}"}
        store.put_document(f"reports/{run}", report.model_copy(update=update | folder).to_json())
        os.utime(store.folder / "documents" / "reports" / f"{run}.json", (1e9 - age, 1e9 - age))
    return store


def test_the_newest_run_is_the_default(store: LocalStore) -> None:
    assert Run.open(store=store).id == "new"
    assert Run.open("previous", store=store).id == "old"
    assert [run.id for run in all_runs(store)] == ["new", "old"]
    assert Run.open(store=StoreConfig(root=str(store.folder))).name == NAME


def test_a_command_takes_a_run_by_id_name_or_word(store: LocalStore) -> None:
    newest, named = (named_report(store, reference) for reference in (None, NAME))
    assert newest == named == named_report(store, "latest") != named_report(store, "previous")


def test_a_run_that_is_not_there_is_answered_with_the_nearest(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(SnapFusionError, match="did you mean 'new'"):
        Run.open("nwe", store=store)
    with pytest.raises(StoreError, match="there is no store in"):
        store_at(StoreConfig(root=str(tmp_path / "typo")))
    assert not (tmp_path / "typo").exists()


def test_a_run_hands_out_pictures_architecture_and_bundle(store: LocalStore, tmp_path: Path) -> None:
    run = Run.open(store=store)
    assert run.pictures["base_50"].getpixel((0, 0)) == (255, 0, 0)
    assert run.architecture.blocks
    assert run.bundle(tmp_path / "there") == tmp_path / "there" / "bundle"
    assert (tmp_path / "there" / "bundle" / "manifest.json").read_bytes() == b"{}"
    with pytest.raises(SnapFusionError, match="no record 'student_9'; it has: architecture_evolution"):
        run.record("student_9")


def test_a_line_holds_what_tells_runs_apart(store: LocalStore) -> None:
    row = Run.open(store=store).row(champion="new")
    assert (row["preset"], row["distance"], row["clip"], row["ms"], row["size_mib"]) == (
        "smoke +1", 1.25, None, 23.4, 6.5,
    )  # fmt: skip
    assert row["champion"] and not Run.open("old", store=store).row(champion="new")["champion"]
    assert Run.open("old", store=store).row()["ms"] is None


def said(
    command: Any, store: LocalStore, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0
) -> str:
    assert command.main(["--store", str(store.folder), *words]) == code
    found = capsys.readouterr()
    return found.err if code else found.out


def test_runs_are_listed_newest_first(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(runs, store, capsys).splitlines()
    assert [line.split()[0] for line in lines] == ["id", "new", "old"]
    assert "?[31mred <b>" in lines[1] and "1.25" in lines[1] and "23.4" in lines[1]
    assert "\x1b" not in "".join(lines)
    rows = json.loads(said(runs, store, capsys, "--json", "--limit", "1"))
    assert [row["id"] for row in rows] == ["new"]


def test_a_run_is_shown_with_numbers_stages_and_places(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    page = said(show, store, capsys, "old")
    for words in (
        "student_8",
        "cache",
        "/elsewhere/old (not on this machine)",
        f"draw --store {store.folder}",
    ):
        assert words in page
    payload = json.loads(said(show, store, capsys, "--json"))
    assert payload["id"] == "new" and payload["report"]["headline"]["coreml.unet.size_mib"] == 5.0


def test_a_run_that_is_not_there_is_one_line(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    error = said(show, store, capsys, "odl", code=1)
    assert "did you mean 'old'" in error
    assert "\x1b" not in error and error.count("\n") == 1


def test_looking_loads_no_torch() -> None:
    import subprocess

    code = "import sys, flows.commands.runs, flows.commands.show; print({'torch', 'pandas', 'metaflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
