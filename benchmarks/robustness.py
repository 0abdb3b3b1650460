"""Does the same pressure find the same size? Networks on MNIST from several seeds, initialisations and start widths.

    python benchmarks/robustness.py --data path/to/MNIST/root --seeds 5

Every seed with each initialisation at start width 1, and with the other start widths from the first initialisation.
Training images are turned, scaled and shifted a little: on images that it knows by heart a network has next to no loss
left, and the worth of a unit is that of a few of them.
`Pressure.nu` is per fraction of the start network's MACs; here it is scaled with them, so that a MAC costs the same for
every start width. "undecided": gates that are neither at 0 nor at 1 an epoch before the gated phase ends. "structure":
units left of every group. Finished runs are kept in the JSON file and not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import finished_or_run, finished_rows, print_table
from frontier_tasks import TASKS, Batches, Data
from lenet_models import moved
from torch import nn

import fxcat

WIDTHS = (1.0, 1.5, 2.0)
INITIALISATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "kaiming normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "xavier uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}
FIRST = next(iter(INITIALISATIONS))
MODELS = ("lenet_300_100", "lenet_5")
CASES = [(start, WIDTHS[0]) for start in INITIALISATIONS] + [(FIRST, width) for width in WIDTHS[1:]]


class Moved:
    """Batches (images, labels) with the images moved, differently in every epoch."""

    def __init__(self, batches: Batches, seed: int) -> None:
        self._batches, self._generator = batches, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self._batches:
            yield moved(images, self._generator), labels


def run(name: str, seed: int, start: str, width: float, nu: float, epochs: int, data: Data) -> dict[str, Any]:
    torch.manual_seed(seed)
    task = TASKS[name]
    model = task.build(width)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            INITIALISATIONS[start](parameter.data)
    example = data[0][:1]
    reference = fxcat.prepare(task.build(1.0), example, verbose=False).start_cost.macs
    net = fxcat.prepare(model, example, verbose=False)
    gates = net.gate_vector.theta.numel()
    pressure = fxcat.Pressure(nu=nu * net.start_cost.macs / reference)
    train, test = task.batches(data, seed)
    began = time.perf_counter()
    history = fxcat.fit(
        *(net, Moved(train, seed), test),
        **{"epochs": epochs, "pressure": pressure, "lr": task.lr, "seed": seed, "device": "cpu", "progress": False},
    )
    gated = [e for e in history.epochs if e.phase == "gated"]
    return {
        "accuracy %": 100 * (history.epochs[-1].val_accuracy or 0.0),
        "MACs": net.hard_cost().macs,
        "undecided": gated[-1].undecided / gates,
        "structure": "-".join(map(str, net.live_units().values())),
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nu", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("runs/robustness.json"))
    options = parser.parse_args()
    data = TASKS[MODELS[0]].load(options.data, 28)
    rows = finished_rows(options.json)
    for name in options.models:
        chosen: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            for start, width in CASES:
                key: dict[str, Any] = {"model": name, "seed": seed, "initialisation": start, "width": width}
                key |= {"nu": options.nu, "epochs": options.epochs}
                call = partial(run, name, seed, start, width, options.nu, options.epochs, data)
                chosen.append(finished_or_run(options.json, rows, key, call, measures="training"))
        print_table(f"{name}, MNIST, pressure {options.nu} at width 1", summary(chosen))


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spread over all runs, and over the seeds of each case."""
    parts: dict[str, list[dict[str, Any]]] = {"all": rows}
    for start, width in CASES:
        parts[f"{start}, width {width}"] = [r for r in rows if (r["initialisation"], r["width"]) == (start, width)]
    result: list[dict[str, Any]] = []
    for name, some in parts.items():
        macs, accuracies = [r["MACs"] for r in some], [r["accuracy %"] for r in some]
        result.append(
            {
                "runs": f"{name} ({len(some)})",
                "mean MACs": round(statistics.mean(macs)),
                "variation of MACs %": 100 * deviation(macs) / statistics.mean(macs),
                "mean accuracy %": f"{statistics.mean(accuracies):.2f}",
                "accuracy, highest − lowest": f"{max(accuracies) - min(accuracies):.2f}",
                "deviation of accuracy": deviation(accuracies),
                "undecided %, highest": 100 * max(r["undecided"] for r in some),
            }
        )
    return result


if __name__ == "__main__":
    main()
