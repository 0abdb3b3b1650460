"""Deformable convolutions: they read their input at places that other values say."""

from __future__ import annotations

from typing import Any

import torch
import torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]  # it registers the op
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, along
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.contraction import (
    WeightedFunction,
    consumed,
    freeze_outer,
    given_weights,
    parameter_weight,
    unite_bias,
)
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.kernels import Sizes, bind_kernel
from fxcat.passes.rules.sizes import asked_sizes
from fxcat.passes.rules.table import rule
from fxcat.passes.rules.terms import Contraction


@rule(torch.ops.torchvision.deform_conv2d)
class DeformedConv(WeightedFunction):
    """Channels are those of a convolution; offsets and masks, one for every place of the kernel, stay. PyTorch counts
    no multiply-adds. How many groups there are is told by the shapes."""

    def binds(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return parameter_weight(_given(node)["weight"])

    def weights(self, node: fx.Node) -> tuple[fx.Node, ...]:
        given = _given(node)
        return given_weights(given["weight"], given["bias"])

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = _given(node)
        source, weight, bias = given["input"], given["weight"], given["bias"]
        for place in (given["offset"], given["mask"]):
            flow.freeze(flow.values[place], node, "positions that a deformable convolution reads at")
        entering, outer = consumed(flow, node, 1)
        leaving, width, *kernel = value_of(weight).shape
        sizes = Sizes(len(entering) // width, width, leaving * width // len(entering))
        if self.binds(node) and flow.values[weight] is None:
            fields = value_of(given["offset"]).shape[1] // (2 * kernel[0] * kernel[1])
            self._share(flow, node, entering, fields, sizes)
            name = flow.attribute_name(weight)
            out = bind_kernel(flow, name, name.removesuffix(".weight"), sizes, entering)
        else:
            flow.freeze((entering, flow.values[weight]), node, "a computed weight of a deformable convolution")
            out = torch.zeros(leaving, dtype=torch.int32)
        freeze_outer(flow, node, out, outer)
        if _follows(bias, weight):
            flow.values[bias] = out
        else:
            unite_bias(flow, out, bias)
        flow.contractions[node] = Contraction((), (source,), ())
        return along(out, 1, value_of(node).dim()) if outer is None else outer

    @staticmethod
    def _share(flow: Flow, node: fx.Node, entering: torch.Tensor, fields: int, sizes: Sizes) -> None:
        """Channels that have offsets of their own stay equally many."""
        if fields == 1:
            return
        if sizes.groups > 1:
            flow.freeze(entering, node, "groups of channels, and groups with offsets of their own")
        blocks = entering.reshape(fields, -1)
        flow.unite(blocks, blocks[:1])


def _follows(bias: fx.Node, weight: fx.Node) -> bool:
    """Whether a bias is made in every pass, as long as the weight: zeros, where there is none."""
    asked = [found for number in bias.all_input_nodes for found in asked_sizes(number)]
    return bias.op == "call_function" and (weight, 0) in asked


def _given(node: fx.Node) -> dict[str, Any]:
    """What follows these are numbers; that of groups is computed from shapes."""
    return arguments(node, "input", "weight", "offset", "mask", "bias")
