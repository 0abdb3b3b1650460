"""Invariants I1–I4 on random graphs."""

from __future__ import annotations

import pytest
import torch
from exactness import check_on, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import Opaque, RandomNet, Several, Step, steps

from fxcat.errors import NothingToPruneError

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def holds(program: list[Step], seed: int) -> None:
    cls = (RandomNet, RandomNet, Opaque, Several)[seed % 4]
    model = cls(program).double()
    randomise(model, seed)
    example, others = (
        tuple(torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3))
        for shape in ((1, 3, 6, 6), (3, 3, 8, 8))
    )
    if cls is Several:
        example, others = (((x, y), {"image": z}) for x, y, z in (example, others))
    else:
        example, others = example[:1], others[:1]
    try:
        report = check_on(model, "random", example, others, others, settings=2)
    except NothingToPruneError:
        return
    assert not report.failures


@settings(max_examples=70, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(st.lists(steps, max_size=8), st.integers(0, 1000))
def test_random_graphs(program: list[Step], seed: int) -> None:
    holds(program, seed)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
@given(st.lists(steps, max_size=14), st.integers(0, 1000))
def test_many_random_graphs(program: list[Step], seed: int) -> None:
    holds(program, seed)
