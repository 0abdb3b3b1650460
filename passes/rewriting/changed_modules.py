"""What a removal changes of modules beside the widths of their layers, and the widths that they state themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx, nn

from fxcat.passes.graph.meta import CALL, VALUE_NUMBERS
from fxcat.passes.rewriting.plan import Plan


def others_than_written(root: nn.Module, before: fx.Graph, plan: Plan) -> frozenset[str]:
    """Paths of the modules in which a plan changes more than widths, or widths that the module states itself and not
    as its layers do (`tell_widths`). `root`: not yet changed."""
    ops = [node for node in _changed(before, plan) if node.op not in ("get_attr", "placeholder")]
    found = {call[0] if (call := CALL.get(node)) else "" for node in ops}
    told = widths_told(root, plan)
    for path, sizes in _old_sizes(root, plan).items():
        stated = {n for n, v in vars(root.get_submodule(path)).items() if type(v) is int and v in sizes}
        if not stated <= told.get(path, {}).keys():
            found.add(path)
    return frozenset(found)


def without_parts(before: Iterable[str], root: nn.Module) -> frozenset[str]:
    """Paths of the modules that have lost one of those in them, and are no lists of modules. `before`: all paths that
    there were."""
    left = dict(root.named_modules())
    outer = {path.rpartition(".")[0] for path in before if path not in left}
    return frozenset(p for p in outer & left.keys() if not isinstance(left[p], nn.Sequential | nn.ModuleList))


def _changed(before: fx.Graph, plan: Plan) -> Iterator[fx.Node]:
    """The nodes that a plan takes away, changes or adds."""
    new = {old: node for node, old in plan.origin.items()}
    standing = {number: node for node in plan.graph.nodes for number in VALUE_NUMBERS.get(node, ())}

    def now(old: fx.Node) -> fx.Node | None:
        numbers = VALUE_NUMBERS.get(old, ())
        return new.get(old, standing.get(numbers[0]) if numbers else None)

    for old in before.nodes:
        node = new.get(old)
        if (
            node is None
            or (node.op, node.target) != (old.op, old.target)
            or fx.map_arg((old.args, dict(old.kwargs)), now) != (node.args, dict(node.kwargs))
        ):
            yield old
    yield from (node for node in plan.graph.nodes if node not in plan.origin)


def _old_sizes(root: nn.Module, plan: Plan) -> dict[str, set[int]]:
    """For every module that is none of the graph's layers the sizes of axes in it that become smaller."""
    layers = _layers(plan)
    found: dict[str, set[int]] = {}
    for name, axes in plan.keep.items():
        path, _, leaf = name.rpartition(".")
        held = getattr(root.get_submodule(path), leaf, None)
        shape = () if held is None else held.shape  # some are there in `eval()` only
        for above in _above(path) if shape else ():
            if above not in layers:
                found.setdefault(above, set()).update(shape[axis] for axis in axes)
    return found


def widths_told(root: nn.Module, plan: Plan) -> dict[str, dict[str, int]]:
    """The widths that modules state as all layers in them that have an attribute of that name: what they become."""
    layers = _layers(plan)
    inside: dict[str, list[str]] = {}
    for layer in layers:
        for above in _above(layer.rpartition(".")[0]):
            inside.setdefault(above, []).append(layer)
    found: dict[str, dict[str, int]] = {}
    for path in _old_sizes(root, plan):
        for name, value in vars(root.get_submodule(path)).items():
            if type(value) is not int:
                continue
            stating = [x for x in inside.get(path, ()) if type(vars(root.get_submodule(x)).get(name)) is int]
            agreed = {getattr(root.get_submodule(x), name) for x in stating} == {value}
            after = {getattr(plan.twin.get_submodule(x), name) for x in stating}
            if agreed and len(after) == 1:
                found.setdefault(path, {})[name] = after.pop()
    return found


def tell_widths(root: nn.Module, told: Mapping[str, Mapping[str, int]]) -> None:
    """Set the widths that modules state."""
    modules = dict(root.named_modules()) if told else {}
    for path in told.keys() & modules.keys():
        for name, width in told[path].items():
            setattr(modules[path], name, width)


def _layers(plan: Plan) -> frozenset[str]:
    return frozenset(str(n.target) for n in plan.graph.nodes if n.op == "call_module")


def _above(path: str) -> Iterable[str]:
    """A path, and those of the modules around it, but for the outermost."""
    while path:
        yield path
        path = path.rpartition(".")[0]
