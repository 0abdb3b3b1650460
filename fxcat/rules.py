"""How to teach fxcat an op of your own: register a `Rule` for a module class, a function, an op or a method name.

    from fxcat.rules import Elementwise, Zero, rule

    @rule(Swish)  # your nn.Module class, or a function
    class SwishRule(Elementwise):  # each channel apart, labels pass through
        zero = Zero.PRESERVES  # f(0) = 0

Without a rule your module is traced through, as any other; a function that cannot be traced is one opaque node, whose
units are frozen and reported. A rule keeps the module, or the function (mark it with `torch.fx.wrap`), as one node.
Rules of convolutions and linear layers (`Conv`, `Linear`) apply to subclasses that do not override `forward`.
"""

from fxcat.passes.graph.label_arrays import Labels
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Counting, Folding, Moved, Replacement, Rule, Sample, Size, Zero
from fxcat.passes.rules.conv import Conv
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.linear import Linear
from fxcat.passes.rules.table import decomposition, rule
from fxcat.passes.rules.terms import Contraction, Term

__all__ = [
    "Contraction",
    "Conv",
    "Counting",
    "Elementwise",
    "Flow",
    "Folding",
    "Labels",
    "Linear",
    "Moved",
    "Replacement",
    "Rule",
    "Sample",
    "Size",
    "Term",
    "Zero",
    "decomposition",
    "rule",
    "value_of",
]
