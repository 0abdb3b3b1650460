"""Invariants I1–I4 on one small model of each torchvision family; all 64 models: `benchmarks/exactness.py --all`."""

from __future__ import annotations

import pytest
from exactness import check, randomise
from zoo import build

import fxcat

FAMILIES = (
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_invariants(name: str) -> None:
    model = build(name).double()
    randomise(model, 0)
    report = check(model, name, (1, 3, 64, 64), (2, 3, 96, 96), settings=1)
    assert not report.failures
    assert report.units
    assert report.coverage > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ("inception_v3", "alexnet", "vgg11_bn"))
def test_large_invariants(name: str) -> None:
    model = build(name).double()
    randomise(model, 0)
    size = 299 if name == "inception_v3" else 64
    assert not check(model, name, (1, 3, size, size), (2, 3, size, size), settings=1).failures


@pytest.mark.parametrize(("name", "sections"), (("resnet18", 8), ("resnet50", 16), ("mobilenet_v2", 10)))
def test_every_residual_branch_is_a_section(name: str, sections: int) -> None:
    net = fxcat.prepare(build(name), verbose=False)
    assert len(net.structure.sections) == sections
