"""Networks of the second generator (`random_models.py`): I1–I4 on dozens of seeds, and what it makes of a fault."""

from __future__ import annotations

import pytest
import torch
from random_models import RESULTS, Program, Step, build, draw, failure, images, script, shrunk, source, written
from random_parts import DIMS, OTHER, STEPS

FOUND = (5022, 5088, 5424, 6975)
"""These failed once."""


@pytest.mark.parametrize("seed", (*range(1, 49), *FOUND))
def test_random_networks(seed: int) -> None:
    program = draw(seed)
    assert failure(program, seed) in ("", "nothing"), source(program)


@pytest.mark.slow
def test_a_random_network_as_an_onnx_file() -> None:
    assert failure(draw(100), 100, onnx=True) in ("", "nothing")


@pytest.mark.parametrize("kind", STEPS)
def test_steps_are_networks(kind: str) -> None:
    """Every step runs alone, whatever its number, for images of all numbers of dimensions that it is for."""
    for dims in DIMS[kind]:
        for number in range(dims, 10_000, 2_300):
            result = list(RESULTS)[number % len(RESULTS)]
            program = Program((Step(kind, -1, 0, number),), dims, 1 + number % 2, result, number % 5 == 0)
            text, fixed = written(program)
            with torch.no_grad():
                build(text)(*images(program, 2, 0, () if fixed else OTHER[dims]))


def test_what_fails_is_cut_down() -> None:
    program = Program((Step("conv"), Step("residual", number=21), Step("norm"), Step("cat", -2), Step("conv")), 1, 2)
    smallest = shrunk(program, lambda p: any(s.kind == "residual" and s.number >= 2 for s in p.steps))
    assert smallest == Program((Step("residual", number=2),))
    text = script(smallest, 3, "I2")
    assert compile(text, "script", "exec") and "l2(v0)" in text
