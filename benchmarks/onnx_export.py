"""ONNX of pruned models, one of each family: equal to PyTorch, and no operator left over.

    python benchmarks/onnx_export.py

Random well-scaled weights, half of the units and a third of the sections removed at random. "left over": operators
(by type) beyond those of the unpruned model's own export, not counting the one Gather that replaces each channel
shuffle whose rectangle is broken. Below: networks pruned to uniform widths against the same widths built by hand.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import print_table, write_json
from exactness import random_gates
from models import well_scaled
from torch import nn

import fxcat

MODELS = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet"),
    *("inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "efficientnet_v2_s"),
    *("regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_0"),
)


def row(name: str, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    model, example = well_scaled(name)
    net = fxcat.prepare(model, example, verbose=False)
    random_gates(net, 0)
    before = fxcat.export_onnx(model, folder / "before.onnx", example)
    after = fxcat.export_onnx(fxcat.finalize(net), folder / "after.onnx", example)
    extra = Counter(after.operators) - Counter(before.operators)
    shuffles = extra.pop("Gather", 0)
    return {
        "model": name,
        "max error": after.max_error,
        "operators before": sum(before.operators.values()),
        "after": sum(after.operators.values()),
        "left over": sum(extra.values()),
        "shuffles replaced": shuffles,
        "MB before": before.bytes / 1e6,
        "MB after": after.bytes / 1e6,
        "seconds": round(time.perf_counter() - start, 1),
    }


def keep_first_half(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Every group at half its width."""
    net = fxcat.prepare(model, example, verbose=False, gates="units")
    for gate in net.gates.values():
        gate.theta[gate.count // 2 :] = 0.0
    return fxcat.finalize(net)


def half_resnet18() -> nn.Module:
    """torchvision's ResNet-18 with all widths halved, built by its own class."""
    model = torchvision.models.ResNet.__new__(torchvision.models.ResNet)
    nn.Module.__init__(model)
    model._norm_layer = nn.BatchNorm2d  # pyright: ignore[reportPrivateUsage]
    model.inplanes, model.dilation, model.groups, model.base_width = 32, 1, 1, 64
    model.conv1 = nn.Conv2d(3, 32, 7, 2, 3, bias=False)
    model.bn1, model.relu, model.maxpool = nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    for i, planes in enumerate((32, 64, 128, 256)):
        layer = model._make_layer(torchvision.models.resnet.BasicBlock, planes, 2, 1 + (i > 0))
        setattr(model, f"layer{i + 1}", layer)
    model.avgpool, model.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(256, 1000)
    return model


def half_vgg11() -> nn.Module:
    layers: list[int | str] = [32, "M", 64, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M"]
    features = torchvision.models.vgg.make_layers(layers)
    model = torchvision.models.VGG(features)
    model.classifier = nn.Sequential(
        *(nn.Linear(256 * 49, 2048), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(2048, 2048), nn.ReLU(True), nn.Dropout()),
        nn.Linear(2048, 1000),
    )
    return model


def by_hand(name: str, pruned: nn.Module, built: nn.Module, folder: Path) -> dict[str, Any]:
    example = torch.randn(1, 3, 64, 64)
    a = fxcat.export_onnx(pruned, folder / "pruned.onnx", example)
    b = fxcat.export_onnx(built, folder / "built.onnx", example)
    return {
        "network": name,
        "operators pruned": sum(a.operators.values()),
        "built by hand": sum(b.operators.values()),
        "same operators": str(dict(a.operators) == dict(b.operators)),
        "parameters pruned": sum(p.numel() for p in pruned.parameters()),
        "parameters by hand": sum(p.numel() for p in built.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--json", type=Path, default=Path("runs/onnx_export.json"))
    options = parser.parse_args()
    example = torch.zeros(1, 3, 64, 64)
    zoo = torchvision.models
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[dict[str, Any]] = []
        for model in options.models:
            rows.append(row(model, folder))
            write_json(options.json, rows)
        hand = [
            by_hand("resnet18, half width", keep_first_half(zoo.resnet18(), example), half_resnet18(), folder),
            by_hand("vgg11, half width", keep_first_half(zoo.vgg11(), example), half_vgg11(), folder),
            by_hand(
                "mobilenet_v2, width_mult=0.5",
                keep_first_half(zoo.mobilenet_v2(), example),
                zoo.mobilenet_v2(width_mult=0.5),
                folder,
            ),
        ]
    print_table("pruned models in ONNX Runtime", rows)
    print_table("pruned against built by hand", hand)
    write_json(options.json, [*rows, *hand])


if __name__ == "__main__":
    main()
