"""What the benchmarks share: JSON files, tables, and the way to the tests' models and invariant checks."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table

import fxcat
import fxcat.exporters
import fxcat.passes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "command": _command(),
        "library": library(),
    }


def _command() -> str:
    """Without the names of the files that it writes."""
    arguments = iter(sys.argv[1:])
    kept = [a for a in arguments if a != "--json" or not next(arguments)]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def library() -> str:
    """Which version of the library's code is measured: a hash of its files."""
    packages = (fxcat, fxcat.passes, fxcat.exporters)
    files = sorted(
        {f for p in packages for f in Path(str(p.__file__)).parent.rglob("*.py")}, key=lambda f: f.parts[-3:]
    )
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that an earlier call has written, to be kept; ends the program if it measured another library."""
    if not path.exists():
        return []
    known = json.loads(path.read_text())
    if known["environment"].get("library") != library():
        raise SystemExit(f"{path} was measured with another version of the library: give another file, or delete it")
    return known["rows"]


def write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), "rows": list(rows)}, indent=1) + "\n")


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()])
    Console(width=160).print(table)
