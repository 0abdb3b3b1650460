"""Example values of nodes: run a node, or a whole graph, on the meta device."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental import _config as fx_config
from torch.utils._pytree import tree_map

from fxcat.passes.graph.arguments import names_type, thaw
from fxcat.passes.graph.copy_model import meta_twin
from fxcat.passes.graph.flops import flop_counter
from fxcat.passes.graph.meta import VALUE
from fxcat.passes.rules.table import function_rule, has_hooks, module_rule

_EXAMPLE: Mapping[fx.Node, Any] = {}


def run_node(node: fx.Node, root: nn.Module, *, in_full: bool = False, values: Mapping[fx.Node, Any] = _EXAMPLE) -> Any:
    """Execute one node on the example values of its inputs. Modules run through `forward`: hooks do not fire.

    `in_full`: even if a rule knows the shape of the result. `values`: of inputs, in place of their example values. What
    a model makes elsewhere (`torch.ones(n)`, constants) is on the meta device like all other example values.
    """
    try:
        value = _execute(node, root, in_full, values)
    except NotImplementedError:
        value = _run_on_data(node)
        if value is None and node.target is operator.getitem:  # a mask: as if it held everywhere
            with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # pyright: ignore[reportAttributeAccessIssue]
                value = _execute(node, root, in_full, values)
        if value is None:
            raise
    return value.to("meta") if isinstance(value, torch.Tensor) and not value.is_meta else value


def _run_on_data(node: fx.Node) -> torch.Tensor | None:
    """The example value of a call that PyTorch cannot do on the meta device: a tensor whose shape does not depend on
    values.

    None if it does, or if the call is none of a function or method.
    """
    results = [r for r in (_on_data(node, fill) for fill in _FILLS) if r is not None]
    kinds = {(r.shape, r.dtype) if isinstance(r, torch.Tensor) else None for r in results}
    return results[0].to("meta") if len(results) > 1 and len(kinds) == 1 and None not in kinds else None


_FILLS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    torch.ones_like,
    lambda x: torch.linspace(0.5, 1.5, x.numel()).view(x.shape).to(x.dtype),
    torch.zeros_like,
)
"""Values to try: what selects or counts entries has results of other shapes."""


def _on_data(node: fx.Node, fill: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def data(value: Any) -> Any:
        return fill(torch.empty_like(value, device="cpu")) if isinstance(value, torch.Tensor) else value

    args, kwargs = tree_map(data, (thaw(node.args), thaw(node.kwargs)))
    try:
        if node.op == "call_function" and callable(node.target):
            return node.target(*args, **kwargs)
        return getattr(args[0], str(node.target))(*args[1:], **kwargs) if node.op == "call_method" else None
    except Exception:  # what the op has against such values
        return None


def _execute(node: fx.Node, root: nn.Module, in_full: bool, values: Mapping[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    args, kwargs = thaw(node.args, values), thaw(node.kwargs, values)
    if node.op == "call_function":
        assert callable(node.target)
        rule = function_rule(node.target)
        inferred = None if rule is None or in_full else rule.infer_call(args, kwargs)
        return node.target(*args, **kwargs) if inferred is None else inferred
    if node.op == "call_method":
        return getattr(args[0], _method(node))(*args[1:], **kwargs)
    module = operator.attrgetter(str(node.target))(root)
    if in_full or any(not t.is_meta for t in (*module.parameters(), *module.buffers())):
        inferred = None if in_full else infer(module, args, kwargs)
        return meta_twin(module).forward(*args, **kwargs) if inferred is None else inferred
    return run_module(module, args, kwargs)


def _method(node: fx.Node) -> str:
    """What to call for a method: example values have the shapes of the real ones, but not always their strides."""
    name = str(node.target)
    return name.replace("view", "reshape") if name in ("view", "view_as") and not names_type(node) else name


def run_module(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Execute a module on example values."""
    inferred = infer(module, args, kwargs)
    return module.forward(*args, **kwargs) if inferred is None else inferred


def infer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """What the module's rule knows about its output's example value without running the module."""
    rule = module_rule(module)
    if rule is None or has_hooks(module):
        return None
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return rule.infer(module, args[0])
    return rule.infer_module(module, args, kwargs)


def counted_macs(node: fx.Node, root: nn.Module, values: Mapping[fx.Node, Any] = _EXAMPLE) -> int:
    """Multiply-adds that PyTorch counts while a node runs; 0 if what it computes depends on data."""
    counter = flop_counter()
    try:
        with counter, torch.no_grad():
            run_node(node, root, in_full=True, values=values)
    except Exception:
        return 0
    return counter.get_total_flops() // 2


def propagate(graph: fx.Graph, root: nn.Module) -> None:
    """Recompute every node's example value; the placeholders keep theirs."""
    with torch.no_grad():
        for node in graph.nodes:
            if node.op not in ("placeholder", "output"):
                VALUE.set(node, run_node(node, root))
