"""A graph as the code of a network: the classes of its modules become subclasses with generated methods.

The user's containers, names and other methods stay; only `forward` is new. A module that was called, and can have a
graph of its own (`folding.py`), gets the part that is its own, so that it can be called, hooked and replaced. What
cannot says so when it is. Inference and training may have graphs of their own over the same modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch import fx, nn

from fxcat.errors import InputError
from fxcat.network.apart import AsWritten, Layers, Refusing
from fxcat.network.gates import SAMPLES
from fxcat.network.module_state import module_at
from fxcat.network.pretrained import told_when_saved
from fxcat.passes.capture.kept_state import lines_of
from fxcat.passes.capture.regions import Region
from fxcat.passes.codegen.folding import SAID, fold
from fxcat.passes.codegen.generated import Generated, function_of
from fxcat.passes.codegen.own_methods import computing, own_again, refusing, takes_apart, watched
from fxcat.passes.codegen.region_graphs import region_graph
from fxcat.passes.codegen.shown import hide, left_out
from fxcat.passes.codegen.signatures import Head, name_of_module, parameters_of, signature_of
from fxcat.passes.codegen.ways import Way, split_phases
from fxcat.passes.graph.invocations import Invocations
from fxcat.passes.graph.meta import COUNTS, LINES, NO_GRAD, UNCAST, VALUE
from fxcat.passes.rules.boundary import NO_REGION, region_output
from fxcat.utils.made_classes import make_class

_CAPTURED = "_captured_class"
"""Attribute of a generated class: the class that was captured."""

_BEFORE = "_class_before"
"""Attribute of a generated class: what `uninstall` goes back to."""

NO_BLOCKS: tuple[Invocations, Invocations] = ({}, {})


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before `install`."""
    return getattr(type(module), _CAPTURED, type(module))


def install(
    root: nn.Module,
    graph: fx.Graph,
    regions: Sequence[Region] = (),
    blocks: tuple[Invocations, Invocations] = NO_BLOCKS,
    *,
    for_good: bool,
    others: Collection[str] = (),
) -> None:
    """Make the graph the `forward` of `root` and of its modules; or its parts those of the modules of regions.

    `blocks`: the modules that were called, in inference and in training. `for_good`: `uninstall` leaves it. `others`:
    paths of the modules that are not any more what the code of their classes makes of them.
    """
    installer = _Installer(root, blocks, for_good=for_good, others=others)
    if not regions:
        installer.install("", graph)
    for number, region in enumerate(regions):
        forward = original_class(root.get_submodule(region.path)).forward
        installer.install(region.path, region_graph(graph, number, region, forward))


def uninstall(root: nn.Module) -> None:
    """Give all modules the classes that they had before `install`, unless that was for good."""
    for module in root.modules():
        vars(module).pop(SAMPLES, None)
        before = vars(type(module)).get(_BEFORE)
        if before is not None:
            module.__class__ = before


def layers(graph: fx.Graph) -> frozenset[str]:
    """Paths of the modules whose weights a graph uses, but of those that Python calls by themselves."""
    apart = {n.all_input_nodes[0] for n in graph.nodes if n.target is region_output and n.args[1] == NO_REGION}
    called = {str(n.target) for n in graph.nodes if n.op == "call_module" and n not in apart}
    return frozenset(called | {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"})


class _Installer:
    """Gives modules their classes; one class to those with the same code."""

    def __init__(
        self, root: nn.Module, blocks: tuple[Invocations, Invocations], *, for_good: bool, others: Collection[str]
    ) -> None:
        self._root, self._blocks, self._for_good, self._others = root, blocks, for_good, others
        self._classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
        # for this network alone: as long as a class is known, it lives
        self._flat, self._uncalled = cache(partial(_silent_class, calls=False)), cache(_silent_class)
        self._undoable = cache(_undoable)
        self._own, self._refusing, self._taken_apart = cache(own_again), cache(refusing), cache(takes_apart)
        self._watched = cache(watched)

    def install(self, path: str, graph: fx.Graph) -> None:
        """Make a graph the code of the module at a path, and of those in it."""
        module = self._root.get_submodule(path)
        prefix = f"{path}." if path else ""

        def signature(path: str) -> inspect.Signature | None:
            found = module_at(module, path.removeprefix(prefix))
            return None if found is None else signature_of(original_class(found).forward)

        ways = split_phases(graph)
        folded = fold([way.graphs for way in ways], self._blocks, prefix, signature)
        given = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
        ways = [replace(way, graphs=graphs) for way, graphs in zip(ways, folded.outer, strict=True)]
        modules = dict(module.named_modules())
        inside = partial(layers, graph)
        self._set_class(module, _class_of(original_class(module), ways, [given], inside, modules, path))
        for inner, graphs in folded.inner.items():
            block = module_at(module, inner.removeprefix(prefix))
            if block is not None and not is_chain(block, list(graphs.values())):
                self._set_class(block, self._class_of_block(block, graphs))
            elif block is not None and type(block).forward is not nn.Sequential.forward:
                self._set_class(block, nn.Sequential)  # its code, of an earlier network, had a bypass
            if block is not None and inner in folded.uncalled:
                self._set_class(block, self._uncalled(type(block)))
        for inner in folded.flat:
            block = module_at(module, inner.removeprefix(prefix))
            if block is not None:
                self._set_class(block, self._flat(type(block)))
        if self._for_good:
            self._set_methods({**dict.fromkeys(folded.inner), **dict.fromkeys(folded.flat)}, prefix)
            self._watch_methods(path, set(layers(graph)))

    def _set_methods(self, paths: Collection[str], prefix: str) -> None:
        """Let methods that take apart the modules at some paths do so where that is right, or refuse."""
        root = self._root.get_submodule(prefix[:-1])
        for path in paths:
            block = module_at(root, path.removeprefix(prefix))
            methods = () if block is None else self._taken_apart(original_class(block))
            if block is None or not methods:
                continue
            if path in self._others or is_silent(block):
                block.__class__ = self._refusing(type(block), methods)
            elif type(block) is not original_class(block):
                block.__class__ = self._own(type(block), original_class(block))

    def _watch_methods(self, path: str, called: Collection[str]) -> None:
        """Let the methods of modules that are others now compute nothing else than they did."""
        prefix = f"{path}." if path else ""
        paths = [p for p in self._others if p == path or (p.startswith(prefix) and p not in called)]
        for block in (found for p in paths if (found := module_at(self._root, p)) is not None):
            apart = self._taken_apart(original_class(block))
            methods = tuple(name for name in computing(original_class(block)) if name not in apart)
            if methods:
                block.__class__ = self._watched(type(block), methods)

    def _class_of_block(self, block: nn.Module, graphs: Mapping[str, fx.Graph]) -> type[nn.Module]:
        """A class with the code of a module inside. `graphs`: by what they say."""
        key = original_class(block), tuple(graphs)
        if key not in self._classes:
            way = Way((), tuple(graphs.values()))
            given = [{str(n.target): n for n in g.nodes if n.op == "placeholder"} for g in way.graphs]
            self._classes[key] = _class_of(original_class(block), [way], _distinct(given), None, {})
        return self._classes[key]

    def _set_class(self, module: nn.Module, made: type[nn.Module]) -> None:
        module.__class__ = made if self._for_good else self._undoable(made, type(module))
        samples = self._root._modules.get(SAMPLES)
        if samples is not None and module is not self._root:
            # an attribute, not a second submodule: all read the one that the network holds
            vars(module)[SAMPLES] = samples


def _class_with(base: type[nn.Module], methods: tuple[Generated, ...], hidden: tuple[str, ...]) -> type[nn.Module]:
    """A subclass with generated methods; `hidden`: parameters of `forward` that it does not show."""
    members: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__}
    members |= {_CAPTURED: base} | told_when_saved(base) | {method.name: method.defined() for method in methods}
    hide(members["forward"], hidden)
    return make_class(base.__name__, base, members, (_class_with, (base, methods, hidden)))


def _undoable(made: type[nn.Module], before: type[nn.Module]) -> type[nn.Module]:
    """A generated class that knows what it stands in for."""
    members = {"__module__": made.__module__, "__doc__": made.__doc__, _BEFORE: before}
    return make_class(made.__name__, made, members, (_undoable, (made, before)))


def _silent_class(base: type[nn.Module], calls: bool = True) -> type[nn.Module]:
    """A subclass for a module that the network does not call: it takes no hooks, which would not run. `calls`: it can
    be called by itself; else what it computes is a part of the code around it."""

    @torch.jit.unused
    def refuse(self: nn.Module, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            f"this {base.__name__} is not called any more: what it computes is a part of the code around it",
            remedy="call the module around it, or put the hook there or on a layer inside",
        )

    members = {"__module__": base.__module__, "__doc__": base.__doc__, _CAPTURED: getattr(base, _CAPTURED, base)}
    members |= {_SILENT: True} | dict.fromkeys(_HOOKING if calls else ("forward", *_HOOKING), refuse)
    return make_class(base.__name__, base, members, (_silent_class, (base, calls)))


def is_silent(module: nn.Module) -> bool:
    """Whether a module takes no hooks, since the network does not call it."""
    return hasattr(type(module), _SILENT)


_SILENT = "_is_silent"
"""Attribute of the class of such a module."""

_HOOKING = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


def is_chain(module: nn.Module, graphs: Sequence[fx.Graph]) -> bool:
    """Whether what a module computes is, still, to call all its modules one after another, as it would by itself."""
    if original_class(module).forward is not nn.Sequential.forward or len(graphs) > 1:
        return False
    first, *called, output = graphs[0].nodes
    before = [first, *called][: len(called)]
    # under an autocast, or without gradients, its code says so
    plain = not any(UNCAST.has(n) or NO_GRAD.has(n) for n in called)
    chained = plain and all(
        n.op == "call_module" and n.args == (b,) and not n.kwargs for n, b in zip(called, before, strict=True)
    )
    return chained and output.args == ((called or [first])[-1],) and [n.target for n in called] == list(module._modules)


def _distinct(given: Sequence[Mapping[str, fx.Node]]) -> Sequence[Mapping[str, fx.Node]]:
    """The placeholders of the phases; those of one, if all take the same."""
    said = [[(name, *(k.get(node) for k in SAID)) for name, node in of.items()] for of in given]
    return given if any(s != said[0] for s in said) else given[:1]


def _class_of(
    base: type[nn.Module],
    ways: Sequence[Way],
    given: Sequence[Mapping[str, fx.Node]],
    inside: Layers | None,
    modules: Mapping[str, nn.Module],
    part: str = "",
) -> type[nn.Module]:
    """A subclass with the code of graphs. `given`: placeholders by their names, of both phases or of each; `inside`:
    paths of the layers, if the module may be called in other ways than these; `modules`: those in it that count their
    calls; `part`: its path."""
    graphs = [graph for way in ways for graph in way.graphs]
    known = dict.fromkeys(name for of in given for name in of)
    parameters = parameters_of(base, list(known))
    this, names = name_of_module(graphs, parameters), dict[str, Any]()
    heads = [Head(this, parameters, of, names) for of in given]
    for graph in graphs:
        output = next(reversed(graph.nodes))
        LINES.set(output, tuple(lines_of(COUNTS.get(output, ((),))[0], this, modules)))
    captured = ", ".join(known)
    otherwise = Refusing(captured) if inside is None else AsWritten(base.forward, inside, captured, part)
    names["_as_written"] = otherwise
    source = f"{base.__module__}.{base.__qualname__}"
    head = heads[0]
    if len(graphs) == 1:
        methods = [function_of(graphs[0], this, f"def forward({head.text}):", source, head.start, names)]
    else:
        methods = _dispatched(ways, given, heads, source, names)
    return _class_with(base, tuple(methods), left_out(parameters, {name.lstrip("*") for name in known}))


def _dispatched(
    ways: Sequence[Way],
    given: Sequence[Mapping[str, fx.Node]],
    heads: Sequence[Head],
    source: str,
    names: Mapping[str, Any],
) -> list[Generated]:
    """A function for every way and phase, and the `forward` that chooses one. Both phases take the same if `given` and
    `heads` are single."""
    methods: list[Generated] = []
    head = heads[0]
    lines = [f"def forward({head.text}):", "    if _is_scripting():"]
    lines += [f"        {line}" for line in (*head.checks, *_scripted(ways[0], given, head.this))]
    for number, way in enumerate(ways):
        if len(heads) == 1:
            lines.append(f"    if {head.fits(way.absent)}:")
        for phase in reversed(range(len(way.graphs))):
            taken = [name for name in given[phase % len(given)] if name not in way.absent]
            values, parameters = ", ".join(taken), ", ".join([head.this, *map(head.typed, taken)])
            name = f"_forward_{_PHASES[phase]}" + (f"_{number}" if number else "")
            methods.append(function_of(way.graphs[phase], head.this, f"def {name}({parameters}):", source))
            if len(heads) == 1:
                condition = f"    if {head.this}.training: " if phase else "    "
            else:
                mode = f"{head.this}.training" if phase else f"not {head.this}.training"
                condition = f"if {mode} and {heads[phase].fits(way.absent)}: "
            lines.append(f"    {condition}return {head.this}.{name}({values})")
    lines.append(f"    return _as_written({head.this}, {head.passed})\n")
    return [*methods, Generated("\n".join(lines), "forward", dict(names))]


_PHASES = ("inference", "training")


def _scripted(way: Way, given: Sequence[Mapping[str, fx.Node]], this: str) -> Iterator[str]:
    """What TorchScript is to do of a `forward` that chooses. A function of its has results of one kind."""
    kinds = {_kind_of(next(reversed(graph.nodes)).args[0]) for graph in way.graphs}
    for phase in reversed(range(len(way.graphs))):
        values = ", ".join(name for name in given[phase % len(given)] if name not in way.absent)
        call = f"return {this}._forward_{_PHASES[phase]}({values})"
        if not phase:
            yield call
        elif len(kinds) == 1:
            yield f"if {this}.training: {call}"
        else:
            yield f"assert not {this}.training, 'in training its results are others, which TorchScript cannot tell'"


def _kind_of(result: Any) -> Any:
    """What kind of a result a graph returns."""
    if isinstance(result, fx.Node):
        return _kind_of(VALUE.get(result, result.op))
    if isinstance(result, tuple | list | Mapping):
        parts: list[Any] = list(result.values() if isinstance(result, Mapping) else result)
        return type(result), *map(_kind_of, parts)
    return type(result)
