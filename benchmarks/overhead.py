"""A gated training step against a plain one: forward, backward, SGD, and for the gated one `controller.step()`.

    python benchmarks/overhead.py

CPU, batch 32 at 64×64, alternating steps (the order within a pair alternates too), ratio of medians, every repeat in
a process of its own. The gated network is in its gated phase: gates sampled, θ updated. glibc is told to keep freed
memory (for both): by default it returns some to the system after every backward pass, more or less of it as chance
has laid out the heap, and the page faults that follow cost either side up to 5 %. `--default-malloc` leaves it alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import print_table, write_json
from torch import nn

import fxcat

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_MMAP_THRESHOLD_": str(1 << 36)}


def timed_step(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, after: Any) -> float:
    start = time.perf_counter()
    loss = F.cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    after()
    return time.perf_counter() - start


def measure(name: str, steps: int) -> tuple[float, float]:
    """Median seconds of a plain and of a gated step."""
    x, y = torch.randn(32, 3, 64, 64), torch.randint(10, (32,))
    plain = torchvision.models.get_model(name, weights=None, num_classes=10).train()
    net = fxcat.prepare(plain, torch.empty(1, 3, 64, 64), verbose=False).train()
    optimizers = [torch.optim.SGD(p, lr=1e-3, momentum=0.9) for p in (plain.parameters(), net.weight_parameters())]
    controller = fxcat.GateController(
        net, optimizers[1], target=fxcat.Target(flops=0.5), total_steps=100 * steps, warmup=0.0, until=1.0
    )
    nets, after = (plain, net), (lambda: None, controller.step)
    times: list[list[float]] = [[], []]
    for step in range(steps + 3):
        for which in (0, 1) if step % 2 else (1, 0):
            seconds = timed_step(nets[which], optimizers[which], x, y, after[which])
            if step >= 3:
                times[which].append(seconds)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=("resnet18", "mobilenet_v2"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--default-malloc", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("runs/overhead.json"))
    options = parser.parse_args()
    if options.one:
        print(*measure(options.one, options.steps))
        return
    environment = os.environ | ({} if options.default_malloc else KEEP_MEMORY)
    rows: list[dict[str, Any]] = []
    for name in options.models:
        command = [sys.executable, __file__, "--one", name, "--steps", str(options.steps)]
        pairs: list[list[float]] = []
        for _ in range(options.repeats):
            printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            pairs.append([float(s) for s in printed.split()])
        ratios = [gated / plain for plain, gated in pairs]
        plain, gated = (1e3 * statistics.median(t) for t in zip(*pairs, strict=True))
        row = {"model": name, "plain ms": plain, "gated ms": gated, "ratio": statistics.median(ratios)}
        rows.append(row | {"lowest": min(ratios), "highest": max(ratios)})
        write_json(options.json, rows)
    threads = torch.get_num_threads()
    print_table(f"training step, {options.repeats} × {options.steps} steps, {threads} threads", rows)


if __name__ == "__main__":
    main()
