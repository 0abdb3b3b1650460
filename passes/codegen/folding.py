"""Folding: a flat graph as one graph per module, each of which calls those of the modules inside.

In: the graphs of all ways and phases in which a model runs, and what its modules were called with when it was captured.
Out: the graphs of the model, of the modules that have one of their own, and the modules that have none. A module has,
if everywhere its nodes stand together, take nothing but its arguments and what it holds, and give nothing but its
result, and if they are the same in all of its calls. Nodes of the others are part of the graph around them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcat.passes.codegen.flat_calls import Flat, Signatures
from fxcat.passes.codegen.scopes import Folder
from fxcat.passes.graph.invocations import Invocations, Key
from fxcat.passes.graph.meta import PATTERN, SAME_AS, UNCAST, MetaKey


@dataclass(frozen=True, slots=True)
class Folded:
    """The graphs of the model, one for every way and phase; of modules by their paths, one for every phase, or a single
    one, each by what it says; the paths of the modules that have none; and of those that only pass on what they get,
    and are not called any more."""

    outer: tuple[tuple[fx.Graph, ...], ...]
    inner: Mapping[str, Mapping[str, fx.Graph]]
    flat: frozenset[str]
    uncalled: frozenset[str]


def fold(
    ways: Sequence[Sequence[fx.Graph]], calls: Sequence[Invocations], prefix: str, signatures: Signatures
) -> Folded:
    """Fold the graphs of all ways to call a model, in each of its phases; `calls` in inference and in training.

    `prefix`: of the paths of calls, where the graphs are those of a module inside, with a dot at its end.
    """
    flats = [[Flat(g, calls[p], prefix, signatures) for p, g in enumerate(way)] for way in ways]
    known = {key[0]: call for of_phase in calls for key, call in of_phase.items() if key[0].startswith(prefix)}
    present = {key[0] for way in flats for flat in way for key in flat.spans}
    foldable = {path for path, call in known.items() if not call.hooked}
    foldable -= {key[0] for way in flats for flat in way for key in flat.spans.keys() - flat.borders.keys()}
    # A module whose graphs do not agree in all ways stays part of the one around it. That one has another graph then,
    # and may agree no longer: with one fewer everything is folded again, until all that are left agree.
    while True:
        made = [[_folded(flat, foldable) for flat in way] for way in flats]
        inner = _common([[graphs for _, graphs in way] for way in made], foldable)
        if len(inner) == len(foldable):
            break
        foldable = set(inner)
    apart = frozenset(path for path, call in known.items() if not call.hooked and path not in inner)
    outer = tuple(tuple(graph for graph, _ in way) for way in made)
    return Folded(outer, inner, apart, frozenset(inner.keys() - present))


def _folded(flat: Flat, foldable: Collection[str]) -> tuple[fx.Graph, dict[Key, fx.Graph | None]]:
    """The graph around the calls of the modules at these paths, and the graphs of these (None: it has none)."""
    graph, made = Folder(flat, foldable).run()
    gone = [key for key in flat.calls if key[0] in foldable and key not in flat.spans]
    return graph, {**made, **{key: flat.passing(key) for key in gone}}


def _common(
    ways: Sequence[Sequence[Mapping[Key, fx.Graph | None]]], foldable: Collection[str]
) -> dict[str, Mapping[str, fx.Graph]]:
    """The graphs, one for every phase or one for both, of the modules whose calls have the same in all ways."""
    found: dict[str, tuple[dict[str, fx.Graph], ...]] = {path: ({}, {}) for path in foldable}
    failed: set[str] = set()
    for way in ways:
        for phase, graphs in enumerate(way):
            for (path, _), graph in graphs.items():
                if graph is None:
                    failed.add(path)
                    continue
                # a graph of one phase only is that of both
                for p in (0, 1) if len(way) == 1 else (phase,):
                    found[path][p][_text(graph)] = graph
    return {
        path: phases[0] | phases[1]
        for path, phases in found.items()
        if path not in failed and all(len(texts) < 2 for texts in phases)
    }


def _text(graph: fx.Graph) -> str:
    """What a graph says; the same for graphs that do the same with the same names."""
    said = [(n.op, _named(n.target), n.args, n.kwargs, n.name, *(k.get(n) for k in SAID)) for n in graph.nodes]
    return repr(said)


def _named(target: Any) -> Any:
    """The name of a module, parameter or method; functions and classes may have one name and be others."""
    return target if isinstance(target, str) else id(target)


SAID: tuple[MetaKey[Any], ...] = (UNCAST, PATTERN, SAME_AS)
"""What nodes say of the code that becomes of them."""
