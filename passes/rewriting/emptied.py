"""Values of which nothing is left, while others of their group are: a half of a chunk, the values of an attention.

A piece of which nothing is left is no piece of a `cat` any more, and an op that keeps its shape is left out. A
convolution of nothing gives its bias everywhere; linear layers, products and attention of nothing run as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.errors import PlanError
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import VALUE, stand_beside, value_of
from fxcat.passes.nodes import cleanup
from fxcat.passes.rewriting.setting import Setting

_CAT = (torch.cat, torch.concat, torch.concatenate)
_OF_NOTHING: tuple[Any, ...] = (
    *(F.linear, torch.matmul, operator.matmul, "matmul", torch.bmm, "bmm", torch.sum, "sum"),
    F.scaled_dot_product_attention,
)
"""What gives zeros, a bias or a mean where nothing is left to sum over."""

_FAILING: tuple[Any, ...] = (
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Upsample, nn.UpsamplingBilinear2d),
    *(F.interpolate, F.conv1d, F.conv2d, F.conv3d),
)
"""What refuses to run without channels, and whose meta kernels do not say so."""


def drop_emptied(setting: Setting, twin: nn.Module, graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> set[str]:
    """Let nothing in the new graph take a value of which nothing is left, where that would not run.

    `twin`: the network, whose data do not matter. Returns the names of the parameters that are read in place of the
    layers that had them. Raises `PlanError` where an op has no result.
    """
    labels = setting.analysis.labels
    taking = [old for old in remaining(graph, copies) if _is_tensor(old) and any(map(setting.is_empty, _inputs(old)))]
    if not taking:
        return set()
    # pieces first: what takes the rest of a `cat` may then take nothing that is empty
    for old in taking:
        if old.target in _CAT and isinstance(_pieces(old), list | tuple) and not setting.is_empty(old):
            _without(old, [piece for piece in _pieces(old) if not setting.is_empty(piece)], copies)
    cleanup.remove_dead(graph)
    read: set[str] = set()
    for old in remaining(graph, copies):
        none_in, none_out = any(map(setting.is_empty, _inputs(old))), setting.is_empty(old)
        if not _is_tensor(old) or not (none_in or none_out):
            continue
        same = _of_same_shape(old, copies[old], setting) if none_out else None
        if same is not None:
            copies[old].replace_all_uses_with(same)
            stands_for(same, copies[old])
            continue
        rule = labels.rules.get(old)
        op: Any = type(twin.get_submodule(str(old.target))) if old.op == "call_module" else old.target
        convolves = isinstance(op, type) and issubclass(op, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        fails = op in _FAILING
        if not none_out:
            gone = any(setting.is_whole_group(i) for i in _inputs(old) if setting.is_empty(i))
            fails = gone or not (convolves or op in (nn.Linear, *_OF_NOTHING) or (rule is not None and rule.movement))
        if convolves and not fails:
            module: Any = twin.get_submodule(str(old.target))
            if module.bias is not None and not none_out:
                read.add(labels.names.of_module(old, "bias"))
            _constant(copies[old], module, setting.width(old))
        elif fails:
            names = " and ".join(
                dict.fromkeys(n for i in _inputs(old) if setting.is_empty(i) for n in setting.groups(i))
            )
            raise PlanError(
                f"every unit of a value is removed (of {names}), and the network still needs one",
                where=place(old),
                remedy=f"leave at least one unit of every part of {names} open, or close the section that holds it",
            )
    cleanup.remove_dead(graph)
    return read


def remaining(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The nodes of the old graph whose copies are still in the new one."""
    present = set(graph.nodes)
    return [old for old, new in copies.items() if new in present]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(VALUE.get(node), torch.Tensor)


def _of_same_shape(old: fx.Node, new: fx.Node, setting: Setting) -> fx.Node | None:
    """An input that may stand for an op's result, where both are empty: one of the same shape."""
    value = value_of(old)
    for source, now in zip(_inputs(old), _inputs(new), strict=True):
        given = VALUE.get(source)
        if not isinstance(given, torch.Tensor) or not setting.is_empty(source):
            continue
        if (given.shape, given.dtype) == (value.shape, value.dtype):
            return now
    return None


def _pieces(cat: fx.Node) -> Any:
    return cat.kwargs.get("tensors", cat.args[0] if cat.args else ())


def _without(old: fx.Node, left: list[fx.Node], copies: Mapping[fx.Node, fx.Node]) -> None:
    """Put what is left of the pieces in the place of a `cat`."""
    cat = copies[old]
    axis: Any = cat.kwargs.get("dim", cat.args[1] if len(cat.args) > 1 else 0)
    now = dict(zip(_inputs(old), _inputs(cat), strict=True))
    result = now[left[0]]
    if len(left) > 1:
        with cat.graph.inserting_before(cat):
            result = cat.graph.call_function(torch.cat, ([now[piece] for piece in left], axis))
    cat.replace_all_uses_with(result)
    stands_for(result, cat)


def _inputs(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _constant(conv: fx.Node, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, width: int) -> None:
    """What a convolution of nothing gives: its bias everywhere."""
    graph, source = conv.graph, conv.all_input_nodes[0]
    rank = len(module.kernel_size)
    with graph.inserting_before(conv):

        def size(axis: int) -> fx.Node:
            return graph.call_method("size", (source, axis))

        def shifted(number: fx.Node, by: int) -> fx.Node:
            return graph.call_function(operator.add, (number, by)) if by else number

        sizes: list[fx.Node] = []
        for i, (kernel, stride, dilation) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True)
        ):
            reach, padding = dilation * (kernel - 1), module.padding
            both = (reach if padding == "same" else 0) if isinstance(padding, str) else 2 * int(padding[i])
            steps = shifted(size(2 + i), both - reach - 1)
            steps = graph.call_function(operator.floordiv, (steps, stride)) if stride > 1 else steps
            sizes.append(shifted(steps, 1))
        if module.bias is None or not width:
            result = graph.call_method("new_zeros", (source, (size(0), width, *sizes)))
        else:
            bias = graph.create_node("get_attr", f"{conv.target}.bias")
            bias = graph.call_method("reshape", (bias, (1, -1, *[1] * rank)))
            result = graph.call_method("expand", (bias, (size(0), -1, *sizes)))
    stand_beside(result, conv)
    conv.replace_all_uses_with(result)
    stands_for(result, conv)
