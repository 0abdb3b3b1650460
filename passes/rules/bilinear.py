"""Bilinear layers: nn.Bilinear and F.bilinear."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Rule, Zero
from fxcat.passes.rules.contraction import given_weights, parameter_weight, unite_bias
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Term


class _Bilinear(Rule):
    """The last axes of two values are summed over, with a weight of shape (out, first, second)."""

    zero = Zero.BREAKS

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return _inputs(node)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        return ()  # PyTorch counts none


@rule(nn.Bilinear)
class Bilinear(_Bilinear):
    """nn.Bilinear."""

    parameters = ("weight", "bias")

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        name = flow.parameter_name(node, "weight")
        out = _bind(flow, node, name, str(node.target))
        flow.bind(node, "bias", 0, out)
        return along(out, -1, value_of(node).dim())

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Bilinear)
        module.out_features, module.in1_features, module.in2_features = module.weight.shape


@rule(F.bilinear)
class BilinearFunction(_Bilinear):
    """F.bilinear."""

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return parameter_weight(_given(node)["weight"])

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _given(node)
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _given(node)
        weight = given["weight"]
        if flow.values[weight] is None:
            name = flow.attribute_name(weight)
            out = _bind(flow, node, name, name.removesuffix(".weight"))
        elif isinstance(flow.values[weight], Grid):
            out = _of_computed(flow, node, weight)
        else:
            for source in node.all_input_nodes:
                reason = "a weight that is computed from other values, or by mixing its entries"
                flow.freeze(flow.values[source], node, reason)
            out = frozen((value_of(node).shape[-1],))
        unite_bias(flow, out, given.get("bias"))
        return along(out, -1, value_of(node).dim())


def _given(node: fx.Node) -> dict[str, Any]:
    return arguments(node, "input1", "input2", "weight", "bias")


def _inputs(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    given = _given(node)
    return given["input1"], given["input2"]


def _entering(flow: Flow, node: fx.Node) -> list[torch.Tensor]:
    """Labels of the last axes of both inputs."""
    found: list[torch.Tensor] = []
    for source in _inputs(node):
        labels, size = flow.of(source), value_of(source).shape[-1]
        if labels.numel() == labels.shape[-1]:
            found.append(flow.line(labels, size))
        else:
            flow.freeze(labels, node, "units along an axis that a bilinear layer leaves alone")
            found.append(frozen((size,)))
    return found


def _bind(flow: Flow, node: fx.Node, name: str, owner: str) -> torch.Tensor:
    """Bind the axes of a weight, known by its canonical name. Returns labels of the output's channels."""
    for axis, labels in enumerate(_entering(flow, node), start=1):
        flow.bind_axis(name, axis, labels)
    out = flow.bound_axis(name, 0)
    out = flow.fresh(value_of(node).shape[-1], owner) if out is None else out
    flow.bind_axis(name, 0, out)
    return out


def _of_computed(flow: Flow, node: fx.Node, weight: fx.Node) -> torch.Tensor:
    """The same for a weight that is computed from parameters."""
    lines = flow.lines(weight)
    for labels, line in zip(_entering(flow, node), lines[1:], strict=True):
        flow.unite(labels, frozen(tuple(labels.shape)) if line is None else line)
    out = flow.fresh(value_of(node).shape[-1], path_of(node))
    flow.unite(out, torch.zeros_like(out) if lines[0] is None else lines[0])
    return out
