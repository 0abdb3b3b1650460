"""Wall time of a whole gated run against the dense run of the same epochs, in the same process.

    python benchmarks/walltime.py --repeats 3

ResNet-18 at 64×64 on synthetic images (only time is measured), batch 64; dense and gated runs alternate. Medians of the
ratios of neighbours. 600 steps are less than an epoch of CIFAR-10: gates need some steps to fall, so in shorter runs a
larger share of the steps has the whole network, and in longer ones a smaller.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import print_table, write_json
from torch import nn

import fxcat


def batch(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose colour tells their class: gates need a loss that falls."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(10, (64,), generator=generator)
    images = torch.randn(64, 3, size, size, generator=generator)
    images[:, 0] += labels[:, None, None] * 0.3
    return images, labels


def seconds(flops: float | None, steps: int, size: int) -> tuple[float, float]:
    """Wall time of one run, and the MACs at its end as a fraction of the dense network's."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    net: nn.Module = model
    start = time.perf_counter()
    if flops is not None:
        net = fxcat.prepare(model, torch.zeros(1, 3, size, size), verbose=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    controller = None
    if isinstance(net, fxcat.GatedModule):
        target = fxcat.Target(flops=flops)
        controller = fxcat.GateController(net, optimizer, target=target, total_steps=steps)
    net.train()
    for step in range(steps):
        x, y = batch(step, size)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if controller is not None:
            controller.step()
    elapsed = time.perf_counter() - start
    left = net.hard_cost().macs / net.start_cost.macs if isinstance(net, fxcat.GatedModule) else 1.0
    return elapsed, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("runs/walltime.json"))
    options = parser.parse_args()
    seconds(0.5, 4, options.size)
    rows: list[dict[str, Any]] = []
    for flops in (0.5, 0.25):
        ratios: list[float] = []
        for _ in range(options.repeats):
            dense, _ = seconds(None, options.steps, options.size)
            gated, left = seconds(flops, options.steps, options.size)
            ratios.append(gated / dense)
            print(f"target {flops}: dense {dense:.1f} s, gated {gated:.1f} s, MACs at the end {left:.3f}", flush=True)
        rows.append(
            {
                "target": flops,
                "MACs at the end": left,
                "median ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "steps": options.steps,
            }
        )
        write_json(options.json, rows)
    print_table(f"ResNet-18 at {options.size}×{options.size}: gated run ÷ dense run", rows)


if __name__ == "__main__":
    main()
