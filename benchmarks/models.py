"""torchvision models with weights for comparisons in single precision."""

from __future__ import annotations

import torch
from detectors import build as build_detector
from detectors import calibrate as calibrate_detector
from detectors import inputs as detector_inputs
from differences import Inputs
from exactness import calibrate, randomise
from torch import nn
from zoo import DETECTION, FLOW, build, shapes


def well_scaled(name: str) -> tuple[nn.Module, Inputs]:
    """A model in eval mode whose activations neither vanish nor grow from layer to layer, and example inputs."""
    torch.manual_seed(0)
    if name in DETECTION:
        model = build_detector(name)
        randomise(model, 0)
        example, others, _ = detector_inputs(torch.float32)
        calibrate_detector(model, others)
        if "rcnn" not in name:  # R-CNNs are built with few
            model.detections_per_img = 20  # pyright: ignore[reportArgumentType]  # among hundreds, rounding decides on the order of some
        return model.eval(), example
    model = build(name)
    randomise(model, 0)
    example, others = (tuple(torch.randn(s) for s in several) for several in shapes(name))
    calibrate(model, others)
    if name in FLOW:
        with torch.no_grad():  # it is added up twelve times: in full size small differences grow without bound
            model.get_parameter("update_block.flow_head.conv2.weight").mul_(0.1)
    return model.eval(), example
