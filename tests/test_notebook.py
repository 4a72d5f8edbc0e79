"""The notebook of examples/ runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "tour.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each cell of code shows, run in a kernel of its own."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for package in ("torch", "tensorflow", "captum", "PIL"):
        pytest.importorskip(package)
    import nbformat

    folder: Path = tmp_path_factory.mktemp("tour")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKPTKIT_HOME", str(folder / "home"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [{kind for out in cell.outputs for kind in out.get("data", ())} for cell in cells], cells


def test_every_cell_runs_and_shows_its_result(outputs):
    kinds, cells = outputs
    assert all("text/plain" in shown for shown in kinds)
    entry, tensors, verified, difference, report, prediction, heat, _ = kinds
    for shown in (entry, tensors, verified, difference, report, prediction):
        assert "text/html" in shown
    assert "image/png" in heat
    text = str(cells[4].outputs)
    assert "stage1" in text
    assert "logits" in text


def test_it_is_kept_without_outputs_and_fetches_nothing():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"]] == []
    assert not any("ckptkit.fetch(" in "".join(cell["source"]) for cell in code)
