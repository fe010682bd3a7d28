r"""Every tutorial runs from its first cell to its last; its own asserts check what it claims."""

import importlib.util
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbclient
import nbformat
import pytest


ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("0*.ipynb"))


def test_there_are_eight_and_they_are_committed_executed():
    assert len(NOTEBOOKS) == 8
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code), path.name
        outputs = [output for cell in code for output in cell.outputs]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert pictures and all(output.metadata["image/png"]["alt"] for output in pictures), path.name
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs), path.name
        assert str(ROOT) not in path.read_text(), path.name
        assert "](SYMBOLS.md)" in cells[0].source, path.name


def test_sliders_start_in_the_middle_and_are_left_out_without_ipywidgets(monkeypatch):
    spec = importlib.util.spec_from_file_location("plotting_of_the_course", ROOT / "tutorials" / "plotting.py")
    plotting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plotting)
    drawn = []
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # what makes an import fail
    plotting.explore(lambda **values: drawn.append(values), tau=(0.1, 1.0, 10.0))
    assert drawn == []
    monkeypatch.setitem(sys.modules, "ipywidgets", types.SimpleNamespace(
        SelectionSlider=lambda options, value, **_: value, interact=lambda draw, **values: draw(**values)))
    plotting.explore(lambda **values: drawn.append(values), tau=(0.1, 1.0, 10.0), G=(4, 8, 16, 32, 64))
    assert drawn == [{"tau": 1.0, "G": 16}]


def run(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()


@pytest.fixture(scope="module")
def runs():
    r"""A future for each notebook; two at a time, each with one thread, as their tensors are small."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(max_workers=2) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield {path: pool.submit(run, path) for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(runs, path):
    runs[path].result()  # raises what the notebook raised, with the cell
