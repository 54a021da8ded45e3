"""docs/notebook.ipynb: kept without outputs, and it runs from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.flows.launched import SmokeRun

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def test_it_is_valid_and_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count]


@pytest.mark.long
def test_it_runs_from_top_to_bottom(
    smoke_run: SmokeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own, as a user who has no runs, but the cache of one."""
    smoke_run.seed(tmp_path)
    for name in [name for name in os.environ if name.startswith("METAFLOW")]:
        monkeypatch.delenv(name)
    for name, value in {
        "SNAPFUSION_HOME": str(tmp_path), "METAFLOW_USER": "notebook", "PYTHONPATH": str(ROOT),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"), "IPYTHONDIR": str(tmp_path / "ipython"),
        "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / ".metaflow").mkdir()  # what a run makes here, or else Metaflow looks above
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "unet.param_ratio" in said
    assert "'student_8': 'from the cache'" in said
    assert said.count("image/png") == 2
