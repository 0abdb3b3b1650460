"""Every rule runs its own samples: the op between two others, removed exactly, with true costs."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from torch import nn

from fxcat.passes.rules import Sample, registered
from fxcat.passes.rules.table import function_rule, module_rule

SAMPLES = [
    pytest.param(sample, id=f"{type(rule).__name__}-{i}-{type(sample.module).__name__}")
    for rule in registered()
    for i, sample in enumerate(rule.samples())
]


def layer(entering: int, leaving: int, dims: int, axis: int) -> nn.Module:
    """A layer that mixes the channels along an axis of a tensor with `dims` dimensions."""
    if axis % dims == dims - 1:
        return nn.Linear(entering, leaving)
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[dims](entering, leaving, 1)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_is_removed_exactly(sample: Sample) -> None:
    op = copy.deepcopy(sample.module)
    shape, axis = sample.shape, sample.axis
    with torch.no_grad():
        out = op.eval()(torch.randn(shape)).shape
    first = layer(3, shape[axis], len(shape), axis)
    last = layer(out[axis], 3, len(out), axis)
    model = nn.Sequential(first, op, last).double().train()
    randomise(model, 0)
    entering = tuple(3 if a == axis % len(shape) else size for a, size in enumerate(shape))
    report = check(model, "sample", (1, *entering[1:]), entering)
    assert not report.failures
    assert report.units > 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_inferred_shape_is_that_of_the_module(sample: Sample) -> None:
    rule = module_rule(sample.module)
    value = torch.randn(sample.shape)
    inferred = None if rule is None else rule.infer(sample.module, value)  # None: a sample that calls a function
    if inferred is not None:
        assert inferred.shape == copy.deepcopy(sample.module).eval()(value).shape


HEADS = torch.randn(2, 3, 5, 4)
PERMUTED = torch.randn(2, 6, 5, 4).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.linear, (HEADS, torch.randn(7, 4), torch.randn(7))),
        (F.linear, (HEADS, torch.randn(4))),
        (F.layer_norm, (PERMUTED, (6,))),
        (F.layer_norm, (HEADS, (5, 4), torch.randn(5, 4))),
        (F.rms_norm, (HEADS, (4,))),
        (F.group_norm, (PERMUTED.permute(0, 3, 1, 2), 2)),
        (F.scaled_dot_product_attention, (HEADS, HEADS, HEADS)),
        (F.scaled_dot_product_attention, (HEADS, HEADS[:, :, :3], torch.randn(2, 3, 3, 6))),
        (F.scaled_dot_product_attention, (HEADS, HEADS[:1], HEADS[:1])),
        (torch.cat, ((HEADS, HEADS[:, :1]), 1)),
        (operator.mul, (torch.randn(6), PERMUTED)),
        (operator.mul, (PERMUTED, torch.randn(5, 1, 1))),
        (operator.mul, (PERMUTED, torch.randn(5, 4, 1))),
        (operator.add, (PERMUTED, torch.randn(2, 5, 4, 6))),
        (operator.add, (torch.randn(3, 1), torch.randn(1, 4))),
        (operator.sub, (torch.randn(4), HEADS)),
        (operator.add, (HEADS, HEADS.double())),
        (operator.gt, (HEADS, HEADS)),
    ],
)
def test_inferred_shape_is_that_of_the_function(function: Any, args: tuple[Any, ...]) -> None:
    rule = function_rule(function)
    assert rule is not None
    inferred = rule.infer_call(args, {})
    if inferred is not None:
        expected = function(*args)
        assert (inferred.shape, inferred.dtype) == (expected.shape, expected.dtype)
        assert inferred.stride() == expected.stride() or function is F.scaled_dot_product_attention


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.linear, (torch.randn(2, 3), torch.randn(4, 5))),
        (F.layer_norm, (HEADS, (5,))),
        (F.scaled_dot_product_attention, (HEADS, torch.randn(2, 3, 5, 6), HEADS)),
        (operator.mul, (HEADS, torch.randn(3))),
    ],
)
def test_wrong_shapes_are_left_to_the_function(function: Any, args: tuple[Any, ...]) -> None:
    rule = function_rule(function)
    assert rule is not None
    assert rule.infer_call(args, {}) is None


def test_an_op_is_registered_once() -> None:
    import fxcat
    from fxcat.passes.rules import Rule, rule

    with pytest.raises(fxcat.FxcatError, match="already"):
        rule(nn.Conv2d)(Rule)
