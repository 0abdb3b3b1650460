"""What is known of a network after every step, as text files: `FXCAT_DUMP=folder`, or `prepare(dump=folder)`.

Every run of the compiler (prepare, shrink, renew, finalize) has a folder of its own in it, numbered in their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxcat.errors import StorageError
from fxcat.passes.analysis.units import NO_UNIT
from fxcat.passes.gating.insert import Gating
from fxcat.passes.graph.label_arrays import FROZEN, leaves
from fxcat.passes.graph.meta import VALUE
from fxcat.passes.pipeline import Observer, State, Step
from fxcat.passes.work import Work
from fxcat.utils.written_files import write_text

VARIABLE = "FXCAT_DUMP"


def dumps(kind: str, name: str, folder: str | os.PathLike[str] | None = None) -> tuple[Observer[State], ...]:
    """What writes the steps of a run into a folder, if one is given, or the environment names one."""
    folder = folder or os.environ.get(VARIABLE)
    return (Dump(Path(folder), kind, name),) if folder else ()


class Dump:
    """Writes a file after every step. Raises `StorageError` where that is not possible."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = 1 + sum(path.is_dir() for path in folder.iterdir())
            self._folder = folder / f"{number:03d}-{kind}-{name}"
            self._folder.mkdir()
        except OSError as error:
            raise StorageError(f"steps cannot be written: {error}", where=str(folder)) from error
        self._made = 0

    def __call__(self, step: Step[Any], state: State) -> None:
        self._made += 1
        path = self._folder / f"{self._made:02d}-{step.name.replace(' ', '-')}.txt"
        write_text(path, "\n".join(_lines_of(step, state)) + "\n", "a step")


def _lines_of(step: Step[Any], state: State) -> Iterator[str]:
    """A step for people: the graph, a line per node with its shape and what its axes hold, and what was found."""
    yield f"# {state.name} after {step.name}"
    yield ""
    for node in state.graph.nodes:
        known = _axes(state, node) if isinstance(state, Work) else ""
        value = "" if node.op == "output" else f"  # {_shape(VALUE.get(node))}{known}"
        yield f"{_code(node):<88}{value}".rstrip()
    if isinstance(state, Work):
        yield from _found(state)


def _code(node: fx.Node) -> str:
    """A node as it would be written."""
    given = [_written(a) for a in node.args] + [f"{name}={_written(a)}" for name, a in node.kwargs.items()]
    if node.op == "output":
        return f"return {', '.join(given)}"
    if node.op == "placeholder":
        return f"{node.name} = input {node.target}"
    if node.op == "get_attr":
        return f"{node.name} = self.{node.target}"
    if node.op == "call_module":
        return f"{node.name} = self.{node.target}({', '.join(given)})"
    if node.op == "call_method":
        return f"{node.name} = {given[0]}.{node.target}({', '.join(given[1:])})"
    return f"{node.name} = {getattr(node.target, '__name__', node.target)}({', '.join(given)})"


def _written(argument: Any) -> str:
    if isinstance(argument, list | tuple):
        parts = ", ".join(map(_written, argument))  # pyright: ignore[reportUnknownArgumentType]
        return f"[{parts}]" if isinstance(argument, list) else f"({parts})"
    return argument.name if isinstance(argument, fx.Node) else repr(argument)


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_shape, value))})"  # pyright: ignore[reportUnknownArgumentType]
    return "" if value is None else str(value)


def _axes(work: Work, node: fx.Node) -> str:
    """Along which axes of a value there are units, of which groups; before they are known, labels."""
    if work.flow is None or node not in work.flow.values:
        return ""
    found: list[str] = []
    for labels in leaves(work.flow.values[node]):
        for axis in (a for a, size in enumerate(labels.shape) if size > 1):
            line = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]
            said = _labels(line) if work.units is None else _groups(work, line)
            found += [f"axis {axis}: {said}"] if said else []
    return f"; {', '.join(found)}" if found else ""


def _labels(line: torch.Tensor) -> str:
    live = line[line != FROZEN]
    return f"labels {int(live.min())} to {int(live.max())}" if live.numel() else ""


def _groups(work: Work, line: torch.Tensor) -> str:
    units = work.units.of_label[line]
    units = units[units != NO_UNIT].unique()
    inside = ((g, int(((units >= g.start) & (units < g.start + g.count)).sum())) for g in work.units.groups)
    return " + ".join(f"{count} units of {group.name}" for group, count in inside if count)


def _found(work: Work) -> Iterator[str]:
    if work.units is not None:
        yield "\n# groups of units"
        yield from (f"{g.name}: {g.count}, units {g.start} to {g.start + g.count - 1}" for g in work.units.groups)
        yield "\n# pinned"
        yield from (f"{p.where}: {p.reason}" for p in work.units.pinned)
    if work.sections is not None:
        yield "\n# sections"
        yield from (f"{s.name}: from {s.entry} to {s.exit}, bypassed by {s.shortcut}" for s in work.sections)
    if work.terms is not None:
        yield "\n# costs: MACs and parameters per combination of live entries of the axes (their full widths)"
        for term in work.terms:
            widths = " × ".join(str(axis.width) for axis in term.axes) or "1"
            yield f"{term.owner}: {term.macs} MACs, {term.params} parameters × {widths}"
    if work.gatings is not None:
        yield "\n# gates"
        yield from (f"{node}: {_gating(gating)}" for node, gating in work.gatings.of_node.items())


def _gating(gating: Gating) -> str:
    """What a node is given beside its arguments, and what its result is multiplied by."""
    taken = [*gating.arguments, *(slot for _, slot in gating.replaced), *([gating.counted] if gating.counted else [])]
    said = [f"takes {slot.name} {slot.shape}" for slot in taken]
    return ", ".join(said + ([f"times {gating.factor.name} {gating.factor.shape}"] if gating.factor else []))
