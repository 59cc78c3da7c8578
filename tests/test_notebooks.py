"""The example notebooks run from top to bottom, in turn: the second reads what the first has made."""

from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
NOTEBOOKS = Path(__file__).parents[1] / "examples/notebooks"


@pytest.mark.slow
def test_notebooks_run(tmp_path):
    for name in ("first_study", "own_model"):
        book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
        nbclient.NotebookClient(book, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
        shown = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
        assert any("image/png" in out.get("data", {}) for out in shown)
    assert {each.name for each in (tmp_path / "runs").iterdir()} == {"first_study", "own_weights", "own_model"}
