"""The rewrite: apply a plan to modules. Parameters keep their identity: optimizers that hold them stay valid."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from torch import fx, nn

from fxcat.passes.capture.regions import Region
from fxcat.passes.graph.buffers import add_buffers
from fxcat.passes.rewriting.changed_modules import tell_widths, widths_told
from fxcat.passes.rewriting.own_modes import keep_modes, modes_set_by
from fxcat.passes.rewriting.plan import Plan
from fxcat.passes.rewriting.slice_modules import slice_modules


def remove_unused(root: nn.Module, before: fx.Graph, after: fx.Graph, regions: Sequence[Region]) -> None:
    """Delete what the old graph used and the new one does not, modules, parameters and buffers, under every name that
    it has, and emptied containers.

    Those of regions stay: Python calls them, also if all that is left is to pass a value on.
    """
    called_by_python = frozenset(region.path for region in regions)
    modules = dict(root.named_modules(remove_duplicate=False))
    used = _used(modules, after)
    gone = _used(modules, before) - used
    if not gone:
        return
    left = used | _read_from(modules, after)
    for path, module in modules.items():
        # a tensor that another module holds too does not keep this one
        found = [n for n, m in module._modules.items() if m and id(m) in gone and not left & set(map(id, m.modules()))]
        for name in found:
            del module._modules[name]
        for own in (module._parameters, module._buffers):
            named = [n for n, t in own.items() if id(t) in gone]
            for name in named:
                del own[name]
            found += named
        if found:
            _delete_if_empty(modules, path, called_by_python)


def _used(modules: Mapping[str, nn.Module], graph: fx.Graph) -> set[int]:
    """Identities of the modules that a graph calls, with all that they hold, and of what it reads from others."""
    found: set[int] = set()
    for target, op in {str(n.target): n.op for n in graph.nodes if n.op in ("call_module", "get_attr")}.items():
        path, _, leaf = target.rpartition(".")
        read = modules.get(path)
        if op == "call_module":
            found |= _held(modules[target])
        elif read is not None:
            found |= {id(own[leaf]) for own in (read._parameters, read._buffers) if leaf in own}
    return found - {id(None)}


def _read_from(modules: Mapping[str, nn.Module], graph: fx.Graph) -> set[int]:
    """Identities of the modules that a graph reads something from."""
    paths = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    return {id(modules[path]) for path in paths if path in modules}


def _held(module: nn.Module) -> set[int]:
    """Identities of a module and of all in it, modules, parameters and buffers."""
    return {id(x) for m in module.modules() for x in (m, *m._parameters.values(), *m._buffers.values())}


def _delete_if_empty(modules: Mapping[str, nn.Module], path: str, kept: Container[str]) -> None:
    module = modules[path]
    held = (*module._modules.values(), *module._parameters.values(), *module._buffers.values())
    if path and path not in kept and all(x is None for x in held):
        outer, _, name = path.rpartition(".")
        modules[outer]._modules.pop(name, None)
        _delete_if_empty(modules, outer, kept)


def apply(root: nn.Module, before: fx.Graph, plan: Plan, regions: Sequence[Region]) -> None:
    """Make `root` (with weights, without gates) the small network. The plan was checked: nothing here can fail."""
    told = widths_told(root, plan)
    slice_modules(root, plan.graph, plan.keep, plan.entering)
    tell_widths(root, told)
    add_buffers(root, plan.buffers)
    modes = modes_set_by(root)
    remove_unused(root, before, plan.graph, regions)
    keep_modes(root, modes)
    for path in plan.out_of_place:
        setattr(root.get_submodule(path), "inplace", False)  # noqa: B010  (modules declare no such attribute)
