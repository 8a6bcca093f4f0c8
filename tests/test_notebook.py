"""The executed notebook of docs/: what is stored is what its code gives today."""

import copy
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "convert-your-notebook.ipynb"
NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]?\d+)?")

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell prints and returns, as text; of a picture, its size."""
    return "".join(output.get("text") or output.data["text/plain"] for output in cell.outputs)


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_stored_notebook_was_executed_from_top_to_bottom(stored):
    nbformat.validate(stored)
    assert stored.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code_cells(stored)] == list(range(1, len(code_cells(stored)) + 1))
    outputs = [output for cell in code_cells(stored) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert sum(map(pictures, code_cells(stored))) == 2
    assert NOTEBOOK.stat().st_size < 300_000


def test_executing_it_again_gives_the_same(stored, monkeypatch, tmp_path):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # pictures into the cells
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # on busy cores its threads wait for each other
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # no settings of the user's own
    again = copy.deepcopy(stored)
    for cell in code_cells(again):
        cell.outputs = []
    nbclient.NotebookClient(again, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    for then, now in zip(code_cells(stored), code_cells(again), strict=True):
        assert NUMBER.sub("#", texts(now)) == NUMBER.sub("#", texts(then)), then.source
        assert pictures(now) == pictures(then)
        for a, b in zip(NUMBER.findall(texts(then)), NUMBER.findall(texts(now)), strict=True):
            # Another BLAS rounds otherwise: the differences from the gradients by hand are rounding and nothing else.
            assert float(b) == pytest.approx(float(a), rel=2e-3, abs=1e-14), then.source
