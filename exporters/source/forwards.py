"""A module as graphs: for every module in it whose Python was captured what its `forward` does.

In: a module and example arguments. Out: `Forwards`. A layer of somebody's own that capture takes as one op is captured
by itself, and becomes a module with graphs like the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError, ExportError, InputError
from fxcat.exporters.source.layers import Layer, call_that_makes
from fxcat.network.module_state import module_at
from fxcat.passes.capture.capture import Captured, capture
from fxcat.passes.codegen.folding import fold
from fxcat.passes.codegen.install import original_class
from fxcat.passes.codegen.signatures import signature_of
from fxcat.passes.codegen.statements import is_of_sizes
from fxcat.passes.codegen.ways import split_phases
from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.meta import HOOKED, PATTERN, value_of
from fxcat.passes.graph.nested import CONSTANTS, Slot, map_leaves

Graphs = tuple[fx.Graph, ...]
"""What a module does in inference and, if that differs, in training."""


@dataclass(slots=True)
class Forwards:
    """What was captured of a network.

    `graphs`: per path of a module whose Python was captured. `layers`: what the graphs call that is torch's own.
    `parameters`: per path the names of the arguments that are needed, as they are written in a signature. `constants`:
    tensors that are no parameters or buffers, by full name.
    """

    graphs: dict[str, Graphs] = field(default_factory=dict[str, Graphs])
    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    parameters: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    constants: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def forwards_of(module: nn.Module, arguments: tuple[Any, ...]) -> Forwards:
    """Capture a module. Raises `ExportError` where something in it has no source form."""
    found = Forwards()
    _add(found, module, "", arguments, {})
    for graphs in found.graphs.values():
        for graph in graphs:
            _erase_numbers(graph)
            _spread_sizes(graph)
    for path, graphs in found.graphs.items():
        found.parameters[path] = _needed_parameters(module, path, graphs)
    for path, graphs in found.graphs.items():
        for graph in graphs:
            for node in graph.nodes:
                target = _joined(path, str(node.target))
                if node.op == "call_module" and target in found.graphs:
                    _bind(node, _signature(module, target), found.parameters[target])
    return found


def _add(found: Forwards, root: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Capture the module at a path, and put what it does to what was found."""
    module = root.get_submodule(path)
    captured = _captured(module, path, args, kwargs)
    ways = split_phases(captured.graph)[:1]
    folded = fold([w.graphs for w in ways], captured.blocks, "", partial(_signature, module))
    own = {"": folded.outer[0], **{p: tuple(graphs.values()) for p, graphs in folded.inner.items()}}
    own = {p: graphs for p, graphs in own.items() if module_at(module, p) is not None}
    found.graphs |= {_joined(path, p): graphs for p, graphs in own.items()}
    found.constants |= {_joined(path, name): t for name, t in {**captured.constants, **captured.orders}.items()}
    for p, graphs in own.items():
        for node in (n for graph in graphs for n in graph.nodes if n.op == "call_module"):
            target = _joined(p, str(node.target))
            if target not in own:
                _add_layer(found, root, _joined(path, target), node)


def _add_layer(found: Forwards, root: nn.Module, path: str, node: fx.Node) -> None:
    if path in found.layers or path in found.graphs:
        return
    module = root.get_submodule(path)
    if HOOKED.has(node):
        raise ExportError(
            f"a {type(module).__name__} has hooks, which have no source form",
            where=path,
            remedy="take them off, or do what they do in a forward",
        )
    layer = call_that_makes(module, called=True)
    if layer is not None:
        found.layers[path] = layer
        return
    args, kwargs = (map_leaves(thaw(given), _example) for given in (node.args, node.kwargs))
    _add(found, root, path, tuple(args), dict(kwargs))


def _example(leaf: Any) -> Any:
    return value_of(leaf) if isinstance(leaf, fx.Node) else leaf


def _captured(module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    name = original_class(module).__name__
    try:
        given: Any = args
        if kwargs:
            bound = signature_of(original_class(module).forward).bind(None, *args, **kwargs)
            given = dict(list(bound.arguments.items())[1:])
        captured = capture(module, given, in_regions=False)
    except (CaptureError, InputError) as error:
        remedy = "fxcat.save() keeps it for its own class, fxcat.export_onnx() for other runtimes"
        where = " in ".join(filter(None, [error.where, path]))
        raise ExportError(f"{name} has no source form: {error.what}", where=where or None, remedy=remedy) from error
    if captured.regions:
        raise ExportError(
            f"{name} takes or gives nested values, and is no single graph",
            where=path or name,
            remedy="give example_inputs that are tensors",
        )
    return captured


def _erase_numbers(graph: fx.Graph) -> None:
    """Numbers that nothing needs any more."""
    for node in reversed(graph.nodes):
        if not node.users and is_of_sizes(node):
            graph.erase_node(node)


def _spread_sizes(graph: fx.Graph) -> None:
    """`x.view(2, 3)` for `x.view((2, 3))`, as most people write it: rewrites give sizes in one argument."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target in _TAKES_SIZES and len(node.args) == 2 and not node.kwargs:
            sizes: Any = node.args[1]
            if isinstance(sizes, tuple | list) and sizes:
                node.args = (node.args[0], *sizes)  # pyright: ignore[reportUnknownArgumentType]


_TAKES_SIZES = ("view", "reshape", "expand", "repeat", "permute")


def _signature(module: nn.Module, path: str) -> inspect.Signature | None:
    found = module_at(module, path)
    return None if found is None else signature_of(original_class(found).forward)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


_STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _needed_parameters(root: nn.Module, path: str, graphs: Graphs) -> list[str]:
    """Parameters of a `forward`, in order; of modules inside those that are used, of the network all that are given
    values and no constants."""
    holders: dict[str, list[fx.Node]] = {}
    for graph in graphs:
        for node in graph.nodes:
            if node.op == "placeholder":
                holders.setdefault(str(node.target), []).append(node)
    found: list[str] = []
    signature = _signature(root, path)
    written = [] if signature is None else [_STARS.get(p.kind, "") + n for n, p in signature.parameters.items()]
    for name in sorted(holders, key=lambda n: written.index(n) if n in written else -1):
        constant = isinstance(PATTERN.get(holders[name][0], Slot(0)), CONSTANTS)
        if any(n.users for n in holders[name]) or not (path or constant):
            found.append(name)
    return found


def _bind(node: fx.Node, signature: inspect.Signature | None, needed: Iterable[str]) -> None:
    """Let a call pass what the module needs, and nothing else."""
    assert signature is not None
    bound = signature.bind(None, *node.args, **node.kwargs)
    bound.apply_defaults()
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name in needed:
        value = bound.arguments[name.lstrip("*")]
        if name.startswith("**"):
            kwargs |= value
        elif name.startswith("*"):
            args += value
        elif any(n.startswith("*") for n in _before(needed, name)):
            kwargs[name] = value
        else:
            args.append(value)
    node.args, node.kwargs = tuple(args), kwargs


def _before(names: Iterable[str], name: str) -> Iterator[str]:
    for other in names:
        if other == name:
            return
        yield other


def tensors_in(found: Forwards, module: nn.Module) -> Mapping[str, torch.Tensor]:
    """Parameters, buffers and constants by full name, also those that have several."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    nodes = ((p, n) for p, graphs in found.graphs.items() for graph in graphs for n in graph.nodes)
    read = {_joined(path, str(n.target)) for path, n in nodes if n.op == "get_attr" and not _is_mode(n)}
    others = {name: _attribute(module, name, found.constants) for name in sorted(read - own.keys())}
    return {name: t.detach() for name, t in {**own, **others}.items()}


def _is_mode(node: fx.Node) -> bool:
    return str(node.target).rpartition(".")[2] == "training"


def _attribute(module: nn.Module, name: str, constants: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name in constants:
        return constants[name]
    path, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(path), leaf, None)
    if not isinstance(value, torch.Tensor):
        raise ExportError(f"{leaf!r} is a {type(value).__name__}, no tensor", where=path or type(module).__name__)
    return value
