"""The notebook: it runs from its first cell to its last, and is stored without what it printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from source_files import ROOT

NOTEBOOK = ROOT / "examples" / "digits.ipynb"


def test_it_is_stored_without_outputs() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's sockets
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert {"report.html", "training.png", "digits.onnx"} <= {p.name for p in tmp_path.iterdir()}
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "largest difference" in printed and "Traceback" not in printed
    assert "epoch" in str([c.get("outputs") for c in notebook.cells]), "a line that is renewed"
