"""Latency as a target: what is predicted against what is measured, and what a target in milliseconds leaves.

    python benchmarks/latency.py resnet18 mobilenet_v3_small

On the CPU, one thread; `--runtime openvino`, `torch` or `torch.compile` in place of ONNX Runtime. A table is measured
for every network and batch; then of random structures, and of what `one_shot` leaves for `Target(latency=0.5)`, for
`Target(flops=0.5)` and the same with `round_to=8`, the networks run in alternation with the dense one. All times are
medians of the faster half of the runs, which nothing else on the machine disturbed, as those of the table; the weights
are random.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import finished_or_run, finished_rows, print_table
from models import well_scaled

import fxcat
from fxcat.exporters.timing.measuring import random_setting
from fxcat.exporters.timing.runs import fast_median, milliseconds
from fxcat.exporters.timing.runtimes import RUNTIMES, Runtime, timer

MODELS = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
SIZE = 224
STEP = 8


def ratios(
    networks: list[torch.nn.Module], example: torch.Tensor, runtime: Runtime, batch: int, repeats: int
) -> list[float]:
    """Of every network its time ÷ that of the first."""
    runs = [timer(runtime).network_run(network, example, batch=batch, threads=1) for network in networks]
    times = [fast_median(taken) for taken in milliseconds(runs, repeats)]
    return [time / times[0] for time in times]


def row(name: str, runtime: Runtime, batch: int, structures: int, repeats: int) -> dict[str, Any]:
    model, example = well_scaled(name)[0], torch.zeros(1, 3, SIZE, SIZE)
    net = fxcat.prepare(model, example, round_to=1, verbose=False)
    table = fxcat.LatencyTable.measure(net, runtime, batch=batch)
    net.use_latency(table)
    predicted, small = [1.0], [model]
    generator = torch.Generator().manual_seed(1)
    for number in range(structures):
        setting = random_setting(net, STEP, generator, closing=bool(number % 2))
        predicted.append(float(net.latency_share(setting)))
        small.append(net.finalized(setting))
    met: dict[str, float] = {}
    for round_to, target in (
        (1, fxcat.Target(latency=0.5)),
        (1, fxcat.Target(flops=0.5)),
        (STEP, fxcat.Target(flops=0.5)),
    ):
        other = fxcat.prepare(model, example, verbose=False, gates="units", round_to=round_to)
        other.use_latency(table) if target.latency else None
        fxcat.one_shot(other, fxcat.importance.norm_scale(other), target=target)
        small.append(fxcat.finalize(other))
        macs = other.hard_cost().macs / other.start_cost.macs
        if target.latency:
            met = {
                "MACs for latency 0.5": macs,
                "predicted for it": float(other.latency_share(other.gate_vector.hard())),
            }
    measured = ratios(small, example, runtime, batch, repeats)
    quotients = [p / m for p, m in zip(predicted[1:], measured[1 : structures + 1], strict=True)]
    return {
        "step": table.step,
        "ops": len(table.ops),
        "least predicted ÷ measured": min(quotients),
        "median": statistics.median(quotients),
        "most": max(quotients),
        "latency=0.5": measured[-3],
        **met,
        "flops=0.5, any width": measured[-2],
        "flops=0.5, round_to=8": measured[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--runtime", default="onnxruntime", choices=RUNTIMES)
    parser.add_argument("--batches", type=int, nargs="*", default=(1, 8))
    parser.add_argument("--structures", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path, default=Path("runs/latency.json"))
    options = parser.parse_args()
    rows = finished_rows(options.json)
    found = [
        finished_or_run(
            options.json,
            rows,
            {"model": name, "runtime": options.runtime, "batch": batch},
            lambda name=name, batch=batch: row(name, options.runtime, batch, options.structures, options.repeats),
        )
        for batch in options.batches
        for name in options.models
    ]
    print_table(f"latency in {options.runtime}, shares of the dense network's", found)


if __name__ == "__main__":
    main()
