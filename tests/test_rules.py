"""Every rule runs its own samples: the op between two others, removed exactly, with true costs."""

from __future__ import annotations

import copy

import pytest
import torch
from exactness import check, randomise
from torch import nn

from fxcat.passes.rules import Sample, registered
from fxcat.passes.rules.table import module_rule

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
    report = check(model, "sample", (1, *entering[1:]), entering, settings=3)
    assert not report.failures
    assert report.units > 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_inferred_shape_is_that_of_the_module(sample: Sample) -> None:
    rule = module_rule(sample.module)
    assert rule is not None
    value = torch.randn(sample.shape)
    inferred = rule.infer(sample.module, value)
    if inferred is not None:
        assert inferred.shape == copy.deepcopy(sample.module).eval()(value).shape


def test_an_op_is_registered_once() -> None:
    import fxcat
    from fxcat.passes.rules import Rule, rule

    with pytest.raises(fxcat.FxcatError, match="already"):
        rule(nn.Conv2d)(Rule)
