"""Detectors, captured in regions: losses in training, detections in inference, exact removal."""

from __future__ import annotations

import pytest
import torch
from detectors import SIZES, build, calibrate, halve_images, inputs
from exactness import check_on, randomise
from zoo import DETECTION

FAST = ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in DETECTION])
def test_invariants_of_detectors(name: str) -> None:
    model = build(name).double()
    if name in FAST and name in SIZES:
        halve_images(model)
    randomise(model, 0)
    example, others, training = inputs(torch.float64)
    calibrate(model, others)
    assert all(len(found["boxes"]) for found in model(*others))
    report = check_on(model, name, example, others, training, settings=1)
    assert not report.failures
    assert report.coverage > 0.95
    assert report.sections or "vgg" in name
