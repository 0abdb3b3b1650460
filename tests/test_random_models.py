"""Networks of the second generator (`random_models.py`): I1–I4 on dozens of seeds, and what it makes of a fault."""

from __future__ import annotations

import pytest
import torch
from random_models import STEPS, Program, Step, build, draw, failure, images, script, shrunk, source


@pytest.mark.parametrize("seed", range(1, 49))
def test_random_networks(seed: int) -> None:
    program = draw(seed)
    assert failure(program, seed) in ("", "nothing"), source(program)


@pytest.mark.slow
def test_a_random_network_as_an_onnx_file() -> None:
    assert failure(draw(100), 100, onnx=True) in ("", "nothing")


@pytest.mark.parametrize("kind", STEPS)
def test_steps_are_networks(kind: str) -> None:
    """Every step runs alone, whatever its number, in every number of dimensions."""
    for dims in (1, 2, 3):
        for number in range(dims, 420, 31):
            program = Program(
                (Step(kind, -1, 0, number),), dims, 1 + number % 2, ("tensor", "pair", "dict")[number % 3]
            )
            with torch.no_grad():
                build(source(program))(*images(program, 2, 0))


def test_what_fails_is_cut_down() -> None:
    program = Program((Step("conv"), Step("residual", number=21), Step("norm"), Step("cat", -2), Step("conv")), 1, 2)
    smallest = shrunk(program, lambda p: any(s.kind == "residual" and s.number >= 2 for s in p.steps))
    assert smallest == Program((Step("residual", number=2),))
    text = script(smallest, 3, "I2")
    assert compile(text, "script", "exec") and "l2(v0)" in text
