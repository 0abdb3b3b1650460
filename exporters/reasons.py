"""What to say about an exception that came from elsewhere: its gist, and the line of the user's code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress

import torch

from fxcat.errors import ExportError
from fxcat.exporters.form import Form
from fxcat.passes.graph.meta import MODULES


def first_line(error: BaseException) -> str:
    """What an exception says; the reason of a violated constraint is in its second line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    count = 2 if lines and lines[0].startswith("Constraints violated") else 1
    return " ".join(lines[:count]) or type(error).__name__


def source_line(error: Exception) -> str | None:
    """The innermost line of code that belongs neither to torch nor to this folder."""
    own = (os.path.dirname(torch.__file__), os.path.dirname(__file__), "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def untranslated(error: Exception, exported: torch.export.ExportedProgram, name: str, form: Form) -> ExportError:
    """What to raise where the exporter fails at an op: it tells which one only deep in what caused its own error."""
    found = next((m for e in _causes(error) if (m := _AT_NODE.search(str(e)))), None)
    if found is None:
        return ExportError(
            f"torch.onnx cannot translate {name}: {first_line(error)}",
            remedy="see the cause above: an operator has no ONNX form in this opset, or one that is not supported",
        )
    node, reason = _node_called(found[1], found[2], exported), first_line(list(_causes(error))[-1])
    remedy = "write it with other operations, or try another opset="
    if "SymbolicTensor" in reason:  # of the exporter's own, where an attribute has to be a number
        reason = "a number that it takes is computed, and has to be fixed in ONNX"
        if form.dynamic_batch:
            remedy = "if it follows from the batch size, export it for one, with dynamic_batch=False"
    where = None if node is None else _place(node)
    return ExportError(f"torch.onnx cannot translate {found[2]} in {name}: {reason}", where=where, remedy=remedy)


_AT_NODE = re.compile(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]", re.DOTALL)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _node_called(name: str, target: str, exported: torch.export.ExportedProgram) -> torch.fx.Node | None:
    """A node of the program; or the only one with that op in what it is taken apart into, where names are others."""
    with suppress(Exception):
        own = [n for n in exported.graph.nodes if n.name == name and str(n.target) == target]
        found = own or [n for n in exported.run_decompositions().graph.nodes if str(n.target) == target]
        return found[0] if len(found) == 1 else None
    return None


def _place(node: torch.fx.Node) -> str | None:
    """The module that calls an op, and the line of the user's code."""
    modules = [path for path, _ in MODULES.get(node, {}).values()]
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.stack_trace or "")
    lines = [line for line in lines if not line[0].startswith(os.path.dirname(torch.__file__))]
    parts = [modules[-1] if modules else "", ":".join(lines[-1]) if lines else ""]
    return ", ".join(filter(None, parts)) or None
