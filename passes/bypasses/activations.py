"""Which ops make a network nonlinear, entry by entry."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from fxcat.passes.rules.base import Rule
from fxcat.passes.rules.channels import PReLU
from fxcat.passes.rules.pointwise import ZeroToSomething, ZeroToZero

_NO_ACTIVATIONS = {
    *(torch.neg, torch.negative, operator.neg, "neg", "negative", "neg_", "zero_"),
    *(F.alpha_dropout, F.feature_alpha_dropout),
}
"""Linear ops, and random ones, that have the rule of an activation since they treat zeros as one does."""


def is_activation(node: fx.Node, rule: Rule | None) -> bool:
    """Whether a node with this rule computes a nonlinear function of every entry of its input."""
    return isinstance(rule, ZeroToZero | ZeroToSomething | PReLU) and node.target not in _NO_ACTIVATIONS
