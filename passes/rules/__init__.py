"""The op table: importing this package registers every rule."""

from fxcat.passes.rules import contraction, elementwise, movement, norm, pooling
from fxcat.passes.rules.table import (
    Labels,
    Rule,
    Sample,
    Term,
    Zero,
    find_rule,
    is_leaf,
    module_rule,
    registered,
    rule,
)

__all__ = [
    "Labels",
    "Rule",
    "Sample",
    "Term",
    "Zero",
    "contraction",
    "elementwise",
    "find_rule",
    "is_leaf",
    "module_rule",
    "movement",
    "norm",
    "pooling",
    "registered",
    "rule",
]
