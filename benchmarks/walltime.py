"""Wall time of a whole gated run against the dense run of the same epochs, in the same process.

    python benchmarks/walltime.py --repeats 3

ResNet-18 at 64×64 on synthetic images (only time is measured), batch 64; dense and gated runs alternate. Medians of the
ratios of neighbours. 600 steps are less than an epoch of CIFAR-10: gates need some steps to fall, so in shorter runs a
larger share of the steps has the whole network, and in longer ones a smaller. Finished pairs are kept in the JSON file
and not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import finished_or_run, finished_rows, print_table
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


def pair(flops: float, steps: int, size: int) -> dict[str, Any]:
    """A dense run and then a gated one."""
    dense, _ = seconds(None, steps, size)
    gated, left = seconds(flops, steps, size)
    return {"dense, seconds": dense, "gated, seconds": gated, "gated ÷ dense": gated / dense, "MACs at the end": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("runs/walltime.json"))
    options = parser.parse_args()
    seconds(0.5, 4, options.size)
    rows = finished_rows(options.json)
    table: list[dict[str, Any]] = []
    for flops in options.flops:
        pairs: list[dict[str, Any]] = []
        for repeat in range(options.repeats):
            key = {"target": flops, "steps": options.steps, "size": options.size, "repeat": repeat}
            pairs.append(finished_or_run(options.json, rows, key, partial(pair, flops, options.steps, options.size)))
        ratios = [p["gated ÷ dense"] for p in pairs]
        table.append(
            {
                "target": flops,
                "MACs at the end": statistics.median(p["MACs at the end"] for p in pairs),
                "median ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "repeats": len(pairs),
            }
        )
    print_table(f"ResNet-18 at {options.size}×{options.size}, {options.steps} steps: gated run ÷ dense run", table)


if __name__ == "__main__":
    main()
