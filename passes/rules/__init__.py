"""The op table: importing this package registers every rule."""

from fxcat.passes.rules import (
    attention,
    boundary,
    contraction,
    elementwise,
    movement,
    norm,
    pooling,
    product,
    regional,
    selection,
)
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
    "attention",
    "boundary",
    "contraction",
    "elementwise",
    "find_rule",
    "is_leaf",
    "module_rule",
    "movement",
    "norm",
    "pooling",
    "product",
    "regional",
    "registered",
    "rule",
    "selection",
]
