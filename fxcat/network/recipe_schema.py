"""What the JSON of a recipe may be: checked whole before anything is made of it. Sizes are bounded, so that no file
keeps a machine busy or fills its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from fxcat.utils import schema

DTYPES = {
    str(t): t
    for t in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
"""Types of example inputs."""

MOST_STAGES = 16
"""Times that a network is prepared again: each of them takes as long as `prepare`."""
MOST_NUMBERS = 1 << 33
"""Numbers in an example input."""
_COUNT = schema.integer(1 << 31)
_SIZES = schema.listed(schema.integer(MOST_NUMBERS), 64)
SHAPES = schema.named(_SIZES)
GATES = schema.listed(schema.row(schema.text, _COUNT), 1_000_000)
CLOSED = schema.listed(schema.listed(_COUNT, 1 << 24), 100_000)
_PATHS = schema.listed(schema.text, 100_000)
_INPUT = schema.listed(schema.anything, 3, 2)

STAGE = schema.record(
    {
        "options": schema.record(
            {name: schema.flag for name in ("units", "sections", "inputs")}, {"ignore": _PATHS, "python": _PATHS}
        ),
        "in_regions": schema.flag,
        "example": schema.optional(schema.record({"layout": schema.anything, "tensors": schema.named(_INPUT, 10_000)})),
        "shapes": SHAPES,
        "gates": GATES,
        "closed": CLOSED,
    },
    {"biases": _PATHS, "ops": schema.listed(schema.text, 1_000_000)},
)
RECIPE = schema.record({"stages": schema.listed(STAGE, MOST_STAGES), "result": SHAPES})


def check_recipe(content: Any) -> None:
    """Raise `ValueError`, with the place, for anything but the JSON of a recipe."""
    RECIPE(content, "the recipe")
    for stage in content["stages"]:
        if stage["example"] is not None:
            _check_example(stage["example"])
        check_closed(stage["gates"], stage["closed"])


def check_closed(gates: Any, closed: Any) -> None:
    """Raise `ValueError` unless every shrink closes gates that were left then, in ascending order."""
    left = sum(count for _, count in gates)
    for numbers in closed:
        ascend = all(a < b for a, b in pairwise(numbers))
        if not ascend or (len(numbers) and numbers[-1] >= left):
            raise ValueError("a shrink closes gates that there are not")
        left -= len(numbers)


def _check_example(example: Mapping[str, Any]) -> None:
    for name, (shape, dtype, *value) in example["tensors"].items():
        _SIZES(shape, f"the shape of {name}")
        schema.choice(*DTYPES)(dtype, f"the type of {name}")
        for number in value:
            schema.optional(schema.number)(number, f"the value of {name}")
        if math.prod(shape) > MOST_NUMBERS:
            raise ValueError(f"{name} has more than {MOST_NUMBERS} numbers")
