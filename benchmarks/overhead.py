"""A gated training step against a plain one: forward, backward, SGD, and for the gated one `controller.step()`.

    python benchmarks/overhead.py

CPU, batch 32 at 64×64, alternating steps, medians. The gated network is in its gated phase: gates sampled, θ updated.
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


def timed_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, after: Any) -> float:
    start = time.perf_counter()
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    after()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=("resnet18", "mobilenet_v2"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, default=Path("runs/overhead.json"))
    options = parser.parse_args()
    x, y = torch.randn(32, 3, 64, 64), torch.randint(10, (32,))
    rows: list[dict[str, Any]] = []
    for name in options.models:
        plain = torchvision.models.get_model(name, weights=None, num_classes=10).train()
        net = fxcat.prepare(plain, torch.empty(1, 3, 64, 64), verbose=False).train()
        optimizers = [torch.optim.SGD(p, lr=1e-3, momentum=0.9) for p in (plain.parameters(), net.weight_parameters())]
        controller = fxcat.GateController(
            net, optimizers[1], target=fxcat.Target(flops=0.5), total_steps=100 * options.steps, warmup=0.0, until=1.0
        )
        times: list[list[float]] = [[], []]
        for step in range(options.steps + 3):
            pair = (
                timed_step(plain, optimizers[0], x, y, lambda: None),
                timed_step(net, optimizers[1], x, y, controller.step),
            )
            if step >= 3:
                times[0].append(pair[0])
                times[1].append(pair[1])
        medians = [statistics.median(t) for t in times]
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        rows.append({"model": name, "plain ms": 1e3 * medians[0], "gated ms": 1e3 * medians[1], "ratio": ratio})
        write_json(options.json, rows)
    print_table(f"training step, batch 32 at 64×64, {options.steps} steps, {torch.get_num_threads()} threads", rows)


if __name__ == "__main__":
    main()
