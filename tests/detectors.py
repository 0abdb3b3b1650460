"""Small torchvision detectors and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from differences import Inputs
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

SIZES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}


def build(name: str) -> nn.Module:
    """A detector without pretrained weights, on small images where the architecture allows them."""
    options: dict[str, Any] = {} if name in SIZES else {"min_size": 128, "max_size": 160}
    if "rcnn" in name:
        options |= {"box_score_thresh": 1e-4, "box_detections_per_img": 20}  # random weights are sure of nothing
        options |= {"box_batch_size_per_image": 32}  # what their heads are trained on: 512 take most of the time
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    if "rcnn" in name:
        # boxes within one cell of a feature map look the same and get the same score: rounding would choose among them
        model.rpn.min_size = 70.0  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def halve_images(model: nn.Module) -> None:
    """Let a detector that works at one size do so at half of it."""
    transform: Any = model.transform
    height, width = transform.fixed_size
    transform.fixed_size = height // 2, width // 2
    transform.min_size, transform.max_size = (transform.fixed_size[0],), transform.fixed_size[1]


def calibrate(model: nn.Module, inputs: Inputs) -> None:
    """Statistics of all norms from one run in eval mode: with random ones, activations grow until a detector is sure of
    nothing but the background. Boxes close to the proposals: moved at random, they may all lie outside of the image."""

    def measure(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        norm.get_buffer("running_mean").copy_(given[0].mean((0, 2, 3)))
        norm.get_buffer("running_var").copy_(given[0].var((0, 2, 3)) + 0.1)

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    with torch.no_grad():
        model.eval()(*inputs)
    for handle in handles:
        handle.remove()
    for predictor in (m for m in model.modules() if isinstance(m, FastRCNNPredictor)):
        with torch.no_grad():
            for parameter in predictor.bbox_pred.parameters():
                parameter.mul_(0.1)


def images(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(sizes))
    return [torch.rand((3, *size), generator=generator, dtype=dtype) for size in sizes]


def with_targets(pictures: list[torch.Tensor]) -> Inputs:
    """Images and what is to be seen in them."""
    box = torch.tensor([[8.0, 16.0, 72.0, 80.0], [30.0, 10.0, 60.0, 50.0]], dtype=pictures[0].dtype)
    points = torch.tensor([40.0, 40.0, 1.0]).expand(2, 17, 3)  # in single precision, says torchvision
    targets = [
        {
            "boxes": box + i,
            "labels": torch.tensor([1, 1]),
            "masks": torch.ones(2, *picture.shape[1:], dtype=torch.uint8),
            "keypoints": points + i,
        }
        for i, picture in enumerate(pictures)
    ]
    return pictures, targets


def inputs(dtype: torch.dtype) -> tuple[Inputs, Inputs, Inputs]:
    """Example inputs, others for inference, and others for training."""
    others = images(((96, 128), (112, 100)), dtype)
    return (images(((96, 96),), dtype),), (others,), with_targets(others)
