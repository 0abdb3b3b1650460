"""Invariants I1–I4 on random graphs."""

from __future__ import annotations

import pytest
from exactness import check, randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import RandomNet, Step, steps

from fxcat.errors import NothingToPruneError

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


def holds(program: list[Step], seed: int) -> None:
    model = RandomNet(program).double()
    randomise(model, seed)
    try:
        report = check(model, "random", (1, 3, 6, 6), (3, 3, 8, 8), settings=2)
    except NothingToPruneError:
        return
    assert not report.failures


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(st.lists(steps, max_size=8), st.integers(0, 1000))
def test_random_graphs(program: list[Step], seed: int) -> None:
    holds(program, seed)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET)
@given(st.lists(steps, max_size=14), st.integers(0, 1000))
def test_many_random_graphs(program: list[Step], seed: int) -> None:
    holds(program, seed)
