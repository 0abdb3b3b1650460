"""The rewrite: apply a plan to modules. Parameters keep their identity: optimizers that hold them stay valid."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import fx, nn

from fxcat.passes.plan import Plan
from fxcat.passes.regions import Region
from fxcat.passes.slicing import add_buffers, slice_modules


def remove_unused(root: nn.Module, before: fx.Graph, after: fx.Graph, regions: Sequence[Region]) -> None:
    """Delete the modules and parameters that the old graph used and the new one does not, and emptied containers.

    Those of regions stay: Python calls them, also if all that is left is to pass a value on.
    """
    called_by_python = frozenset(region.path for region in regions)
    old = {n.target for n in before.nodes if n.op in ("call_module", "get_attr")}
    new = {n.target for n in after.nodes if n.op in ("call_module", "get_attr")}
    called = (root.get_submodule(str(n.target)) for n in after.nodes if n.op == "call_module")
    kept = {id(m) for module in called for m in module.modules()}
    modules = dict(root.named_modules(remove_duplicate=False))
    for target in sorted(map(str, old - new)):
        path, _, leaf = target.rpartition(".")
        parent = modules[path]
        module = parent._modules.get(leaf)
        inner = [] if module is None else [n for n in new if str(n).startswith(f"{target}.")]
        if module is not None and inner and id(module) not in kept:
            for name in [n for n in module._parameters if f"{target}.{n}" not in inner]:
                del module._parameters[name]
            continue
        if module is None and id(parent) in kept:
            continue  # the module that is called still uses what was also read apart
        if module is None:
            parent._parameters.pop(leaf, None)
            parent._buffers.pop(leaf, None)
        elif id(module) not in kept:
            parent._modules.pop(leaf)
        _delete_if_empty(modules, path, called_by_python)


def _delete_if_empty(modules: dict[str, nn.Module], path: str, kept: Container[str]) -> None:
    module = modules[path]
    held = (*module._modules.values(), *module._parameters.values(), *module._buffers.values())
    if path and path not in kept and all(x is None for x in held):
        outer, _, name = path.rpartition(".")
        modules[outer]._modules.pop(name, None)
        _delete_if_empty(modules, outer, kept)


def apply(root: nn.Module, before: fx.Graph, plan: Plan, regions: Sequence[Region]) -> None:
    """Make `root` (with weights, without gates) the small network. The plan was checked: nothing here can fail."""
    slice_modules(root, plan.graph, plan.keep, plan.entering)
    add_buffers(root, plan.buffers)
    remove_unused(root, before, plan.graph, regions)
    for path in plan.out_of_place:
        setattr(root.get_submodule(path), "inplace", False)  # noqa: B010  (modules declare no such attribute)
