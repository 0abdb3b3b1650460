"""The rewrite: apply a plan to modules. Parameters keep their identity: optimizers that hold them stay valid."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from fxcat.passes.cleanup import modules_in_place_on_shared
from fxcat.passes.codegen import install
from fxcat.passes.rules.table import module_rule
from fxcat.slicing import Keep, replace_data, select

def slice_modules(root: nn.Module, graph: fx.Graph, keep: Keep) -> None:
    """Slice parameters (with their gradients) and buffers in place, then set the modules' size attributes."""
    for name, axes in keep.items():
        path, _, leaf = name.rpartition(".")
        module = root.get_submodule(path)
        parameter = module._parameters.get(leaf)
        if parameter is None:
            module._buffers[leaf] = select(module.get_buffer(leaf), axes)
            continue
        gradient = None if parameter.grad is None else select(parameter.grad, axes)
        replace_data(parameter, select(parameter.data, axes), gradient)
    for target in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"):
        module = root.get_submodule(target)
        rule = module_rule(module)
        if rule is not None:
            rule.resize(module)


def add_buffers(root: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Register new index tensors on the root."""
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    for name, value in buffers.items():
        root.register_buffer(name, value.to(device))


def remove_unused(root: nn.Module, before: fx.Graph, after: fx.Graph) -> None:
    """Delete the modules and parameters that the old graph used and the new one does not, and emptied containers."""
    old = {n.target for n in before.nodes if n.op in ("call_module", "get_attr")}
    new = {n.target for n in after.nodes if n.op in ("call_module", "get_attr")}
    kept = {id(root.get_submodule(str(n.target))) for n in after.nodes if n.op == "call_module"}
    for target in sorted(map(str, old - new)):
        path, _, leaf = target.rpartition(".")
        parent = root.get_submodule(path)
        module = parent._modules.get(leaf)
        if module is None:
            parent._parameters.pop(leaf, None)
            parent._buffers.pop(leaf, None)
        elif id(module) not in kept:
            _delete(root, path, leaf)


def _delete(root: nn.Module, path: str, leaf: str) -> None:
    parent = root.get_submodule(path)
    del parent._modules[leaf]
    empty = not parent._modules and not parent._parameters and not parent._buffers
    if empty and path:
        outer, _, name = path.rpartition(".")
        _delete(root, outer, name)


def apply(root: nn.Module, before: fx.Graph, graph: fx.Graph, keep: Keep, buffers: Mapping[str, torch.Tensor]) -> None:
    """Make `root` (with weights, without gates) the small network. The plan was checked: nothing here can fail."""
    slice_modules(root, graph, keep)
    add_buffers(root, buffers)
    remove_unused(root, before, graph)
    for module in modules_in_place_on_shared(graph, root):
        module.inplace = False  # pyright: ignore[reportAttributeAccessIssue]
    install(root, graph)
