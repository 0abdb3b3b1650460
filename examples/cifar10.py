"""Train a pruned network on CIFAR-10 and export it.

    python examples/cifar10.py --model resnet20 --flops 0.5 --epochs 20
    python examples/cifar10.py --model mobilenet_v2 --data path/to/imagefolder

`--model`: resnet20, resnet32, resnet44, resnet56, resnet110, or the name of any torchvision classifier. `--data`: a
folder with `train/<class>/*` and `test/<class>/*`; without it torchvision downloads CIFAR-10.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torchvision
from cifar_data import Batches, load_cifar10
from cifar_resnet import CifarResNet
from torch import nn

import fxcat


def build(name: str) -> nn.Module:
    depth = name.removeprefix("resnet")
    if depth in ("20", "32", "44", "56", "110"):
        return CifarResNet(int(depth))
    return torchvision.models.get_model(name, weights=None, num_classes=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", type=Path, help="ImageFolder with train/ and test/")
    parser.add_argument("--flops", type=float, default=0.5, help="share of the FLOPs to keep")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--size", type=int, default=32, help="image size; 16 is four times cheaper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    images, labels, test_images, test_labels = load_cifar10(options.data, options.size)
    net = fxcat.prepare(build(options.model), torch.zeros(1, 3, options.size, options.size))
    net.summary(fxcat.Target(flops=options.flops))
    history = fxcat.fit(
        net,
        Batches(images, labels, options.batch_size, augment=True, seed=options.seed),
        Batches(test_images, test_labels, 500, augment=False),
        epochs=options.epochs,
        target=fxcat.Target(flops=options.flops),
        lr=options.lr,
        checkpoint_dir=options.out,
        resume=options.resume,
        seed=options.seed,
    )
    history.save(options.out / "history.json")
    small = fxcat.finalize(net)
    fxcat.save(small, options.out / f"{options.model}.safetensors")
    report = fxcat.export_onnx(small, options.out / f"{options.model}.onnx", test_images[:2])
    last = history.epochs[-1]
    print(f"test accuracy {last.val_accuracy:.2%}, MACs {last.macs:.1%}, parameters {last.params:.1%} of the start")
    print(
        f"{report.path}: {report.bytes / 1e6:.2f} MB, largest error {report.max_error:.1e}, {report.latency_ms:.2f} ms"
    )


if __name__ == "__main__":
    main()
