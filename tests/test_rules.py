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


def producer(shape: tuple[int, ...], module: nn.Module) -> nn.Module:
    """A layer whose output has that shape, from an input with 3 channels or features."""
    if len(shape) == 2 or isinstance(module, nn.Linear):
        return nn.Linear(3, shape[-1])
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)](3, shape[1], 1)


def consumer(shape: torch.Size, module: nn.Module) -> nn.Module:
    if len(shape) == 2 or isinstance(module, nn.Linear):
        return nn.Linear(shape[-1], 3)
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)](shape[1], 3, 1)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_is_removed_exactly(sample: Sample) -> None:
    op = copy.deepcopy(sample.module)
    shape = sample.shapes[0]
    with torch.no_grad():
        out = op.eval()(torch.randn(shape)).shape
    model = nn.Sequential(producer(shape, op), op, consumer(out, op)).double().train()
    randomise(model, 0)
    entering = (
        (shape[0], *shape[1:-1], 3) if len(shape) == 2 or isinstance(op, nn.Linear) else (shape[0], 3, *shape[2:])
    )
    report = check(model, "sample", (1, *entering[1:]), entering, settings=3)
    assert not report.failures


@pytest.mark.parametrize("sample", SAMPLES)
def test_inferred_shape_is_that_of_the_module(sample: Sample) -> None:
    rule = module_rule(sample.module)
    assert rule is not None
    value = torch.randn(sample.shapes[0])
    inferred = rule.infer(sample.module, value)
    if inferred is not None:
        assert inferred.shape == copy.deepcopy(sample.module).eval()(value).shape


def test_an_op_is_registered_once() -> None:
    import fxcat
    from fxcat.passes.rules import Rule, rule

    with pytest.raises(fxcat.FxcatError, match="already"):
        rule(nn.Conv2d)(Rule)
