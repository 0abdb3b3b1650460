"""Lookups of vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Grid, Labels, along, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.table import rule


@rule(nn.Embedding)
class Embedding(Rule):
    """The rows of a table: their width has units."""

    parameters = ("weight",)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        module = flow.module(node)
        assert isinstance(module, nn.Embedding)
        out = flow.bound(node, "weight", 1)
        if out is None:
            out = flow.fresh(module.embedding_dim, str(node.target))
        flow.bind(node, "weight", 1, out)
        if module.max_norm is not None:
            flow.freeze(out, node, "an embedding whose norms are bounded")
        return along(out, -1, value_of(node).dim())

    def resize(self, module: nn.Module, entering: tuple[int, ...]) -> None:
        assert isinstance(module, nn.Embedding) and isinstance(module.weight, torch.Tensor)
        module.embedding_dim = module.weight.shape[1]


@rule(F.embedding)
class EmbeddingFunction(Rule):
    """The same of a table that is given: a parameter, or computed from parameters. Its rows stay."""

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return (_of_lookup(node)["weight"],)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _of_lookup(node)
        table, dims = given["weight"], value_of(node).dim()
        labels = flow.values[table]
        if given.get("max_norm") is not None:
            flow.freeze(labels, node, "an embedding whose norms are bounded")
            return frozen((1,) * dims)
        if not isinstance(labels, Grid):
            first = flow.of(table)
            flow.unite(first, first[:1])
            return along(flow.line(first[:1], value_of(table).shape[1]), -1, dims)
        rows, columns = flow.lines(table)
        if rows is not None:
            flow.freeze_if_units(rows, node, "rows of a table that are looked up")
        return frozen((1,) * dims) if columns is None else along(columns, -1, dims)


def _of_lookup(node: fx.Node) -> dict[str, Any]:
    return arguments(node, "input", "weight", "padding_idx", "max_norm")
