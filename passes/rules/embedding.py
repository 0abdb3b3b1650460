"""Lookups of vectors."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxcat.passes.graph.label_arrays import Labels, along
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
