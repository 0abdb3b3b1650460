"""Layers that do nothing in inference: Identity, dropout, stochastic depth."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Sample, Zero
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.noise import multiplies_by_noise
from fxcat.passes.rules.table import decomposition, rule, rule_by_nature


@rule(
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, stochastic_depth),
)
class Dropping(Elementwise):
    """Zero for some, a multiple of the input for the others; where nothing is dropped, the input itself."""

    zero = Zero.PRESERVES
    keeps_infinity = True

    def returns_input(self, node: fx.Node, module: nn.Module | None, training: bool) -> bool:
        if isinstance(module, nn.Identity):
            return True
        if module is not None:
            return not training or bool(getattr(module, "p", None) == 0)
        given = thaw(arguments(node))
        return not given.get("training", True) or given.get("p", 0.5) == 0

    def samples(self) -> tuple[Sample, ...]:
        return Sample(nn.Dropout(0.5), (2, 6, 3, 3)), Sample(nn.Identity(), (2, 6, 3, 3))


rule_by_nature(Dropping(), multiplies_by_noise)


@decomposition(nn.Identity)
def _identity(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What it is given, if that is a tuple, or something else that is no tensor."""
    args = (*args, *kwargs.values())
    given = args[0] if args else None
    is_tensor = isinstance(given, fx.Proxy) and isinstance(value_of(given.node), torch.Tensor)
    return NotImplemented if is_tensor or len(args) != 1 else given
