"""Slicing modules: parameters, buffers, and the attributes that state a size."""

from __future__ import annotations

from collections.abc import Container, Mapping

from torch import fx, nn

from fxcat.passes.rules.table import module_rule
from fxcat.utils.tensor_slicing import Keep, replace_data, select


def slice_modules(root: nn.Module, graph: fx.Graph, keep: Keep, entering: Mapping[str, tuple[int, ...]]) -> None:
    """Slice parameters (with their gradients) and buffers in place, then set the modules' size attributes.

    `entering`: for every module that the graph calls the new shape of its first input.
    """
    for name, axes in keep.items():
        path, _, leaf = name.rpartition(".")
        module = root.get_submodule(path)
        parameter = module._parameters.get(leaf)
        if parameter is None:
            held = getattr(module, leaf, None)  # a buffer, or a tensor that is none; some are there in `eval()` only
            if held is not None:
                setattr(module, leaf, select(held, axes))
            continue
        gradient = None if parameter.grad is None else select(parameter.grad, axes)
        replace_data(parameter, select(parameter.data, axes), gradient)
    called: set[int] = set()
    for target in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module"):
        module = root.get_submodule(target)
        rule = module_rule(module)
        if rule is not None and target in entering:
            rule.resize(module, entering[target])
            called.add(id(module))
    _resize_read(root, keep, called)


def _resize_read(root: nn.Module, keep: Keep, called: Container[int]) -> None:
    """Layers of torch.nn that are not called, since other code reads their weights, state their sizes too."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in keep):
        module = root.get_submodule(path)
        weight = module._parameters.get("weight")
        rule = module_rule(module)
        if type(module).__module__.startswith("torch.nn") and weight is not None and rule and id(module) not in called:
            rule.resize(module, (1, *weight.shape))
