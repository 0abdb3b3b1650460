"""Imports point one way: core ← passes ← exporters ← front ← adapters; inside passes: rules ← analyses ← rewrites."""

from __future__ import annotations

import ast
from pathlib import Path

from source_files import modules

FRONT = {"fxcat", "fxcat.api", "fxcat.loading", "fxcat.rules"}
REWRITES = {
    "plan",
    "rewrite",
    "compile",
    "structure",
    "gating",
    "cleanup",
    "codegen",
    "folding",
    "installing",
    "slicing",
    "bypassing",
}


def imports(path: Path) -> set[str]:
    """The fxcat modules that a file imports when it is executed; imports for type checkers do not count."""
    names: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {n for n in names if n.split(".")[0] == "fxcat"}


def layer(name: str) -> int:
    if name.startswith("fxcat.integrations"):
        return 4
    if name in FRONT:
        return 3
    if name.startswith("fxcat.exporters"):
        return 2
    return 1 if name.startswith("fxcat.passes") else 0


def test_layers_import_downwards_only() -> None:
    for name, path in modules().items():
        for imported in imports(path):
            assert layer(imported) <= layer(name), f"{name} imports {imported}"


def test_rules_do_not_import_rewrites() -> None:
    for name, path in modules().items():
        if name.startswith("fxcat.passes.rules"):
            for imported in imports(path):
                assert imported.removeprefix("fxcat.passes.").split(".")[0] not in REWRITES, f"{name}: {imported}"


def test_bare_folder_names_are_never_imported() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert (module or "").split(".")[0] not in ("passes", "exporters"), name
