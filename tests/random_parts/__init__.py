"""What random networks are made of: every step by name."""

from __future__ import annotations

from functools import partial

from random_parts.attention_parts import ATTENTION
from random_parts.branch_parts import BRANCHES
from random_parts.layer_parts import LAYERS
from random_parts.made_parts import MADE
from random_parts.norm_parts import NORMS
from random_parts.parts import Part, write
from random_parts.python_parts import PYTHON
from random_parts.steps import WRITTEN
from random_parts.writer import OTHER, SPATIAL, StepWriter, Value, Writer

__all__ = ["DIMS", "OTHER", "SPATIAL", "STEPS", "Value", "Writer"]

_PARTS: dict[str, Part] = {**NORMS, **LAYERS, **ATTENTION, **BRANCHES, **PYTHON, **MADE}


def _of_part(w: Writer, x: Value, y: Value, number: int, *, part: Part) -> None:
    write(w, part, x, y, number)


STEPS: dict[str, StepWriter] = {**WRITTEN, **{name: partial(_of_part, part=part) for name, part in _PARTS.items()}}
DIMS: dict[str, tuple[int, ...]] = {name: _PARTS[name].dims if name in _PARTS else (1, 2, 3) for name in STEPS}
"""For images of how many dimensions a step is."""
