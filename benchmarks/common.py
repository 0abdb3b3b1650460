"""What the benchmarks share: JSON files, tables, and the way to the tests' models and invariant checks."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from rich.console import Console
from rich.table import Table

import fxcat
import fxcat.exporters
import fxcat.passes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

VERSIONS = Path(__file__).parent / "results" / "versions.json"
Measures = Literal["library", "training", "nothing"]
"""What of fxcat a row depends on: all of its code, the weights that it trains, or, as those of others, nothing."""


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
    """Without the name of the file that it writes; of folders elsewhere only the name."""
    kept = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


@cache
def library() -> str:
    """Which version of the library is measured: a hash of its code, without comments and docstrings."""
    digest = hashlib.sha256()
    folders = [Path(str(package.__file__)).parent for package in (fxcat, fxcat.passes, fxcat.exporters)]
    for folder in folders:
        inner = [f for f in folders if folder in f.parents]  # installed, but not in the checkout
        for file in sorted(f for f in folder.rglob("*.py") if not any(i in f.parents for i in inner)):
            digest.update(ast.dump(_NoStrings().visit(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return digest.hexdigest()[:12]


@cache
def trained_alike() -> set[str]:
    """The versions that train the same weights as this one, to the bit, as far as `witness.py` was run with them."""
    known: dict[str, str] = json.loads(VERSIONS.read_text())
    return {library()} | {name for name, witness in known.items() if witness == known.get(library())}


class _NoStrings(ast.NodeTransformer):
    """Drops strings that stand by themselves: docstrings, of modules, classes, functions and attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that earlier calls have written."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def finished_or_run(
    path: Path,
    rows: list[dict[str, Any]],
    key: dict[str, Any],
    run: Callable[[], dict[str, Any]],
    *,
    measures: Measures = "library",
) -> dict[str, Any]:
    """The row that has the entries of `key`; if there is none, they and what `run` returns, written to the file too.

    A row that another version of the library gave is measured again, unless what it measures is the same.
    """
    return finished_row(rows, key, measures=measures) or add_row(path, rows, key, run(), measures=measures)


def finished_row(
    rows: list[dict[str, Any]], key: dict[str, Any], *, measures: Measures = "library"
) -> dict[str, Any] | None:
    """The row that has the entries of `key`, of a version of the library that gives the same."""
    found = (r for r in rows if r.items() >= key.items())
    if measures == "nothing":
        return next(found, None)
    versions = trained_alike() if measures == "training" else {library()}
    return next((r for r in found if r.get("library") in versions), None)


def add_row(
    path: Path,
    rows: list[dict[str, Any]],
    key: dict[str, Any],
    result: dict[str, Any],
    *,
    measures: Measures = "library",
) -> dict[str, Any]:
    """Put a row in the place of an older one with that key, and write the file."""
    row = key | ({} if measures == "nothing" else {"library": library()}) | result
    rows[:] = [r for r in rows if not r.items() >= key.items()] + [row]
    write_json(path, rows)
    sys.stderr.write(f"{row}\n")
    return row


def write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Whole or not at all: a run that is stopped while it writes keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({"environment": environment(), "rows": list(rows)}, indent=1) + "\n")
    unfinished.replace(path)


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    rows = [{k: v for k, v in row.items() if k != "library"} for row in rows]
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()])
    Console(width=160).print(table)
