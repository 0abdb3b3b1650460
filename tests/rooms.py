"""The rooms of the library, their order, and what imports what; as a script: draws `docs/rooms.md` anew."""

from __future__ import annotations

import ast

import networkx as nx
from source_files import ROOT, modules

ORDER = (
    *("fxcat.version", "fxcat.errors", "fxcat.checks", "fxcat.records"),
    *("fxcat.utils", "fxcat.network", "fxcat.choosing", "fxcat.summary", "fxcat.gated", "fxcat.gated_checks"),
    *("fxcat.passes.graph", "fxcat.passes.pipeline", "fxcat.passes.rules", "fxcat.passes.nodes"),
    *("fxcat.passes.capture", "fxcat.passes.analysis", "fxcat.passes.gating"),
    *("fxcat.passes.work", "fxcat.passes.analyses", "fxcat.passes.dump", "fxcat.passes.structure"),
    "fxcat.passes.timing",
    *("fxcat.passes.codegen", "fxcat.passes.bypasses", "fxcat.passes.rewriting"),
    *("fxcat.passes.preparing", "fxcat.passes.removing", "fxcat.passes.compile"),
    *("fxcat.passes.verification", "fxcat.passes.each_step"),
    *("fxcat.exporters", "fxcat.exporters.source", "fxcat.exporters.timing"),
    *("fxcat.rules", "fxcat.api", "fxcat.storage", "fxcat.loading", "fxcat.structure_plot"),
    *("fxcat.named_models", "fxcat.data", "fxcat.scores", "fxcat.gate_training", "fxcat.training"),
    *("fxcat.integrations", "fxcat.report", "fxcat.hub", "fxcat.cli", "fxcat.__main__"),
)
"""Each may import from those before it, and files of a folder from each other."""

DRAWN = ROOT / "docs" / "rooms.md"


def room(name: str) -> str:
    """The folder of a file, or the file itself where it lies between folders."""
    outer = name.rpartition(".")[0]
    return name if outer in ("fxcat", "fxcat.passes") else outer


def imports() -> nx.DiGraph[str]:
    """Which file imports which, wherever in it."""
    known = modules()
    files: nx.DiGraph[str] = nx.DiGraph()
    for name, path in known.items():
        files.add_node(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            assert all(n.split(".")[0] not in ("passes", "exporters") for n in names), f"{path}: bare folder name"
            files.add_edges_from((name, n) for n in names if n in known and n != name)
    packages = {n for n, p in known.items() if p.name == "__init__.py" and n != "fxcat.passes.rules"}
    files.remove_nodes_from([n for n in packages if files.out_degree(n) == 0 or n == "fxcat"])
    return files


def drawing() -> str:
    """The rooms, what each is for and what each imports, as a page."""
    files = imports()
    lines = [
        "# Rooms",
        "",
        "Each room may import from those above it. (Made from the tree by `tests/rooms.py`, and checked.)",
        "",
        "| room | what is in it | imports |",
        "|---|---|---|",
    ]
    used: dict[str, set[str]] = {name: set() for name in ORDER}
    for name, imported in files.edges:
        one, other = (n if n == "fxcat.passes.rules" else room(n) for n in (name, imported))
        if one != other:
            used[one].add(other)
    known = modules()
    for name in ORDER:
        text = (ast.get_docstring(ast.parse(known[name].read_text(encoding="utf-8"))) or "").partition("\n")[0]
        count = sum(room(n) == name for n in files)
        size = f" ({count} files)" if known[name].name == "__init__.py" else ""
        above = ", ".join(f"`{o.removeprefix('fxcat.')}`" for o in ORDER if o in used[name])
        lines.append(f"| `{name.removeprefix('fxcat.')}`{size} | {text} | {above} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DRAWN.write_text(drawing(), encoding="utf-8")
