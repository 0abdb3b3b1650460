"""Layouts of example values: those that rules give are those that PyTorch gives real tensors."""

from __future__ import annotations

import operator
import random
from typing import Any

import pytest
import torch

from fxcat.passes.rules.table import function_rule


def _drawn(r: random.Random, shape: list[int]) -> torch.Tensor:
    """Zeros of a shape, in any order of axes, with gaps, or the same in several places."""
    kind = r.choice(("permuted", "permuted", "gaps", "expanded", "plain"))
    if kind == "expanded":
        return torch.zeros([1 if r.random() < 0.5 else n for n in shape]).expand(shape)
    if kind == "gaps":
        return torch.zeros([n + 1 for n in shape])[tuple(slice(0, n) for n in shape)]
    order = r.sample(range(len(shape)), len(shape)) if kind == "permuted" else list(range(len(shape)))
    return torch.zeros([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])


def _layout(value: torch.Tensor) -> tuple[Any, ...]:
    """Shape and type, and strides along axes where these say something."""
    return value.shape, value.dtype, [s for s, n in zip(value.stride(), value.shape, strict=True) if n > 1]


def _given(rule: Any, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    on_meta = [a.to("meta").as_strided(a.shape, a.stride()) if isinstance(a, torch.Tensor) else a for a in args]
    return rule.infer_call(tuple(on_meta), kwargs)


@pytest.mark.parametrize("seed", range(4))
def test_sums(seed: int) -> None:
    r, rule, told = random.Random(seed), function_rule(operator.add), 0
    for _ in range(500):
        shape = [r.choice([1, 2, 3]) for _ in range(r.randint(1, 4))]
        a, b = _drawn(r, shape), _drawn(r, [1 if r.random() < 0.4 else n for n in shape])
        pair = r.choice([(a, b), (b, a), (a, 2.0)])
        found = _given(rule, *pair)
        told += found is not None
        assert found is None or _layout(found) == _layout(pair[0] + pair[1]), [_layout(v) for v in (a, b)]
    assert told > 300


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, torch.neg, torch.nn.functional.gelu, torch.exp])
def test_functions_of_one_tensor(function: Any) -> None:
    r, told = random.Random(0), 0
    for _ in range(50):
        value = _drawn(r, [r.choice([1, 2, 3]) for _ in range(r.randint(1, 4))])
        found = _given(function_rule(function), value)
        told += found is not None
        assert found is None or _layout(found) == _layout(function(value))
    assert told > 30


def test_softmax_and_tables() -> None:
    value, table, places = torch.zeros(2, 3, 4), torch.zeros(7, 2), torch.zeros(3, 3, dtype=torch.int64)
    softmax = function_rule(torch.softmax)
    found = _given(softmax, value, -1)
    assert found is not None and _layout(found) == _layout(torch.softmax(value, -1))
    assert _given(softmax, value, -1, dtype=torch.float64) is None
    assert _given(softmax, value, -1, torch.float64) is None
    found = _given(function_rule(operator.getitem), table, places)
    assert found is not None and _layout(found) == _layout(table[places])
    assert _given(function_rule(operator.getitem), table, places.bool()) is None
