"""Linear layers: nn.Linear and F.linear."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.rules.base import Rule, Sample, Zero
from fxcat.passes.rules.contraction import (
    WeightedFunction,
    bind_matrix,
    computed,
    consumed,
    freeze_outer,
    given_weights,
    line_of,
    per_slice,
    unite_bias,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction, Term


@rule(nn.Linear)
class Linear(Rule):
    """Fully connected layers, on the last axis."""

    zero = Zero.BREAKS
    affine = True
    equivariant = True
    parameters = ("weight", "bias")

    def infer(self, module: nn.Module, value: Any) -> torch.Tensor | None:
        assert isinstance(module, nn.Linear)
        fits = value.shape[-1:] == (module.in_features,) and value.dtype == module.weight.dtype
        return empty((*value.shape[:-1], module.out_features), value) if fits else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        entering, outer = consumed(flow, node, -1)
        name = flow.parameter_name(node, "weight")
        out = bind_matrix(flow, name, str(node.target), entering, value_of(node).shape[-1])
        freeze_outer(flow, node, out, outer)
        flow.bind(node, "bias", 0, out)
        return along(out, -1, value_of(node).dim()) if outer is None else outer

    def needs_zero(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def macs(self, flow: Flow, node: fx.Node) -> tuple[Term, ...]:
        axes = flow.parameters[flow.parameter_name(node, "weight")]
        return per_slice(flow, node, Term(flow.one(node).shape[:-1].numel(), (axes[1], axes[0])))

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Linear)
        module.out_features, module.in_features = module.weight.shape

    def samples(self) -> tuple[Sample, ...]:
        return (
            Sample(nn.Linear(6, 4), (2, 6), axis=-1),
            Sample(nn.Linear(6, 4, bias=False), (2, 3, 6), axis=-1),
        )


@rule(F.linear)
class LinearFunction(WeightedFunction):
    """F.linear."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        if len(args) < 2:
            return None
        value, weight = args[:2]
        fits = weight.dim() == 2 and value.shape[-1:] == weight.shape[1:] and value.dtype == weight.dtype
        return empty((*value.shape[:-1], weight.shape[0]), value) if fits else None

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        weight = arguments(node, "input", "weight", "bias")["weight"]
        return (weight,) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ()

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node, "input", "weight", "bias")
        return given_weights(given["weight"], given.get("bias"))

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, "input", "weight", "bias")
        weight, bias = given["weight"], given.get("bias")
        entering, outer = consumed(flow, node, -1)
        value = value_of(node)
        if value_of(weight).dim() == 1:
            return self._of_vector(flow, node, weight, entering, outer)
        out = self._bind(flow, node, weight, entering, value.shape[-1])
        freeze_outer(flow, node, out, outer)
        unite_bias(flow, out, bias)
        term = Term(flow.one(node).shape[:-1].numel(), (entering, out))
        flow.contractions[node] = Contraction(per_slice(flow, node, term), (node.all_input_nodes[0],), ())
        return along(out, -1, value.dim()) if outer is None else outer

    def _of_vector(
        self, flow: Flow, node: fx.Node, weight: fx.Node, entering: torch.Tensor, outer: torch.Tensor | None
    ) -> torch.Tensor:
        """Labels where the weight has one axis only, which leaves none of the output's."""
        if flow.values[weight] is None:
            flow.bind_axis(flow.attribute_name(weight), 0, entering)
        elif isinstance(flow.values[weight], Grid):
            flow.unite(entering, line_of(flow.lines(weight)[0], len(entering)))
        else:
            flow.freeze(
                (entering, flow.of(weight)),
                node,
                "a weight that is computed from other values, or by mixing its entries",
            )
        flow.contractions[node] = Contraction((), (node.all_input_nodes[0],), ())
        return frozen((1,) * value_of(node).dim()) if outer is None else outer.squeeze(-1)

    def _bind(self, flow: Flow, node: fx.Node, weight: fx.Node, entering: torch.Tensor, width: int) -> torch.Tensor:
        if isinstance(flow.values[weight], Grid):
            lines = [line_of(x, n) for x, n in zip(flow.lines(weight), value_of(weight).shape, strict=True)]
            flow.unite(entering, lines[1])
            out = flow.fresh(width, path_of(node))
            flow.unite(out, lines[0])
            return out
        if flow.values[weight] is not None:
            return computed(flow, node, weight, entering)
        name = flow.attribute_name(weight)
        return bind_matrix(flow, name, name.removesuffix(".weight"), entering, width)
