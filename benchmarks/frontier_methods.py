"""What `frontier.py` compares: each method trains one network to a share of the MACs, on the same budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from frontier_tasks import Data, Task
from onnx_latency import latency
from torch import nn
from torch_pruning_peers import BN_SCALE, GROUP_NORM, MAGNITUDE, SPARSE, prune_to, pruner
from training import Batches, PlainRun, accuracy, train_plainly

import fxcat

FXCAT: dict[str, dict[str, Any]] = {
    "fxcat units+layers": {"gates": "units+layers"},
    "fxcat units": {"gates": "units"},
    "fxcat layers": {"gates": "layers"},
    "fxcat ratio": {"policy": "ratio"},
    "fxcat round_to=8": {"gates": "units+layers", "round_to": 8},
}
THREE_WAY = ("narrow", "fxcat units+layers", "fxcat units", "fxcat layers")
PEERS = (MAGNITUDE, BN_SCALE, GROUP_NORM)
SHALLOWER = "shallower"
METHODS = ("dense", "narrow", SHALLOWER, *PEERS, *FXCAT)
PEER_PRUNES_AT = 0.5
WIDTHS = (0.6, 1.25)
"""Of the shallower networks those that somebody would build: neither much narrower nor much wider."""


@dataclass(frozen=True)
class Run:
    """What all methods of a row have in common. `batches(data, seed)`: for training and for the test.
    `times_export`: measure the latency of the exported network."""

    task: Task
    data: Data
    epochs: int
    lr: float
    seed: int
    flops: float
    batches: Callable[[Data, int], tuple[Batches, Batches]]
    autocast: torch.dtype | None = None
    times_export: bool = True

    @property
    def example(self) -> torch.Tensor:
        return self.data[0][:1].float()


def measured(method: str, run: Run) -> dict[str, Any]:
    """Train, and say what came out."""
    torch.manual_seed(run.seed)
    device = run.data[0].device
    build, width = start_network(method, run.task, run.example.cpu(), run.flops)
    model = build(width)
    train, test = run.batches(run.data, run.seed)
    start = time.perf_counter()
    if method in FXCAT:
        model = train_fxcat(model, train, run, fxcat.Target(flops=run.flops), **FXCAT[method])
    elif method in PEERS:
        train_peer(method, model.to(device), train, run)
    else:
        train_plainly(model.to(device), train, run.epochs, run.lr, run.autocast)
    seconds = time.perf_counter() - start
    return {
        "width": width,
        "accuracy %": 100 * accuracy(model, test),
        **size(model.cpu(), run.task.build(1.0), run.example.cpu(), times_export=run.times_export),
        "seconds": round(seconds, 1),
    }


def size(model: nn.Module, dense: nn.Module, example: torch.Tensor, *, times_export: bool = True) -> dict[str, Any]:
    """MACs, parameters, latency, and how many of the sections that fxcat finds in the dense network are left."""
    net, whole = (fxcat.prepare(m, example, verbose=False) for m in (model, dense))
    return {
        "MACs": net.start_cost.macs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sections": len(net.structure.sections),
        "of": len(whole.structure.sections),
        **(latency(model, dense, example) if times_export else {}),
    }


def start_network(
    method: str, task: Task, example: torch.Tensor, flops: float
) -> tuple[Callable[[float], nn.Module], float]:
    """What is trained: how it is built, and its width."""
    if method == "narrow":
        return task.build, width_for(flops * macs_of(task.build(1.0), example), task.build, example)
    if method.startswith(SHALLOWER):
        build = task.shallower[method.removeprefix(SHALLOWER).strip()]
        return build, width_for(flops * macs_of(task.build(1.0), example), build, example)
    return task.build, 1.0


def macs_of(model: nn.Module, example: torch.Tensor) -> int:
    return fxcat.prepare(model, example, verify=False, verbose=False).start_cost.macs


def width_for(macs: float, build: Callable[[float], nn.Module], example: torch.Tensor) -> float:
    """The width multiplier, in hundredths, whose MACs are closest; they grow with the width."""
    low, high = 20, 200
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if macs_of(build(middle / 100), example) < macs else (low, middle)
    return min((low / 100, (low - 1) / 100), key=lambda w: abs(macs_of(build(w), example) - macs))


def applicable(task: Task, example: torch.Tensor, methods: Iterable[str], flops: float) -> list[str]:
    """Without those that need sections or BatchNorm where there is none; "shallower" as one method for every depth
    that meets the target at a usual width."""
    net = fxcat.prepare(task.build(1.0), example, verbose=False)
    without: set[str] = set()
    if not net.structure.sections:
        without |= {"fxcat layers", "fxcat units+layers"}
    if not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        without.add(BN_SCALE)
    wanted = flops * net.start_cost.macs
    depths = {f"{SHALLOWER} {name}": build for name, build in task.shallower.items()} if SHALLOWER in methods else {}
    fitting = [m for m, build in depths.items() if WIDTHS[0] <= width_for(wanted, build, example) <= WIDTHS[1]]
    found = [[m] if m != SHALLOWER else fitting for m in methods if m not in without]
    return [m for several in found for m in several]


def train_peer(method: str, model: nn.Module, train: Batches, run: Run) -> None:
    """Half of the epochs, pruning to the target, the other half; see the text of `frontier.py`."""
    example = run.example
    pruning = pruner(method, model, example)
    sparse = method in SPARSE
    first = round(PEER_PRUNES_AT * run.epochs)
    plain = PlainRun(model, run.lr, first * len(train), run.autocast)
    for _ in range(first):
        if sparse:
            pruning.update_regularizer()
        plain.epoch(train, pruning.regularize if sparse else None)
    prune_to(run.flops, pruning, model, example)
    train_plainly(model, train, run.epochs - first, run.lr, run.autocast)


def train_fxcat(
    model: nn.Module,
    train: Batches,
    run: Run,
    target: fxcat.Target,
    table: fxcat.LatencyTable | None = None,
    **options: Any,
) -> nn.Module:
    """`options`: of `prepare`. `table`: for a target in latency."""
    net = fxcat.prepare(model, run.example.cpu(), verbose=False, **options)
    if table is not None:
        net.use_latency(table)
    fxcat.fit(
        net,
        train,
        epochs=run.epochs,
        target=target,
        lr=run.lr,
        autocast=run.autocast,
        device=run.example.device,
        seed=run.seed,
        progress=False,
    )
    return fxcat.finalize(net)
