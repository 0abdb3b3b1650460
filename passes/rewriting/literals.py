"""The numbers in arguments that state sizes, as they are after removal."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.label_arrays import leaves
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.rewriting.numbers import as_before, in_proportion, keep_numbers, paired_inputs
from fxcat.passes.rewriting.setting import Setting
from fxcat.passes.rules.base import Moved, Rule, Share, Size


def adapt_literals(setting: Setting, copies: Mapping[fx.Node, fx.Node], old: fx.Node) -> None:
    """Change the numbers in the arguments that state sizes; numbers computed from sizes stay what they were."""
    labelled = setting.analysis.labels
    rule = labelled.rules.get(old)
    if rule is None or type(rule).reshaped is Rule.reshaped:
        if isinstance(VALUE.get(old), torch.Tensor):
            keep_numbers(setting.number, copies, old)
        return
    source = next((i for i in old.all_input_nodes if labelled.values[i] is not None), None)
    before, after = () if source is None else setting.of_value(source), setting.of_value(old)
    numbers = [i for i in old.all_input_nodes if isinstance(VALUE.get(i), int | torch.Size)]
    # nothing moves here: the arguments stay as they were written
    if _untouched(before) and _untouched(after) and all(setting.number(n) == value_of(n) for n in numbers):
        return
    labels, value = labelled.values[old], value_of(old)
    single = not isinstance(labels, tuple)
    moved = Moved(
        source=before,
        result=after,
        shape=tuple(n if x is None else len(x) for n, x in zip(value.shape, after, strict=True)) if single else (),
        has_units=tuple(any(x.shape[a] > 1 for x in leaves(labels)) for a in range(value.dim())) if single else (),
        number=setting.number,
    )
    replacement = rule.reshaped(old, moved)
    if replacement is not None:
        new = copies[old]
        new_inputs = dict(paired_inputs(old, new))
        args = [_with_sizes(setting, copies, old, a) for a in replacement.args]
        new.args = fx.map_arg(tuple(args), lambda n: new_inputs.get(n, n))
        kwargs = {k: _with_sizes(setting, copies, old, a) for k, a in replacement.kwargs.items()}
        new.kwargs = fx.map_arg(kwargs, lambda n: new_inputs.get(n, n))
        if replacement.target is not None:
            new.target = replacement.target


def _with_sizes(setting: Setting, copies: Mapping[fx.Node, fx.Node], old: fx.Node, argument: Any) -> Any:
    """An argument with a node of the new graph for every `Size` and `Share` in it."""
    if not isinstance(argument, tuple | list | Size | Share):
        return argument
    new = copies[old]
    with new.graph.inserting_before(new):
        if isinstance(argument, Size | Share):
            return _computed(setting, copies, new.graph, argument)
        return tuple(_computed(setting, copies, new.graph, a) for a in argument)  # pyright: ignore[reportUnknownVariableType]


def _computed(setting: Setting, copies: Mapping[fx.Node, fx.Node], graph: fx.Graph, size: Any) -> Any:
    if isinstance(size, Size):
        return graph.call_function(operator.getitem, (copies[size.shape], size.axis))
    if isinstance(size, Share):
        number = as_before(setting.number, copies, graph, size.number)
        return in_proportion(graph, number, size.live, value_of(size.number))
    return size


def _untouched(live: Any) -> bool:
    return all(_untouched(x) for x in live) if isinstance(live, tuple) else live is None
