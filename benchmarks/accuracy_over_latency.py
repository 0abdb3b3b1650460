"""What accuracy costs in time: networks pruned to shares of the latency, and to shares of the MACs at any widths and at
multiples of eight.

    python benchmarks/accuracy_over_latency.py --models resnet20 --seeds 2 --cifar path/to/imagefolder --plot curves.png

Everybody has the same epochs, data order, optimizer and schedule. The latency table is measured on this machine before
the first run, in ONNX Runtime (one thread, batch 1), or read from `--tables`. The accuracy is that of the last epoch,
the latency that of the exported file, in alternation with the dense one's. Finished runs are kept in the JSON file and
not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from common import print_table
from frontier import AUTOCAST
from frontier_methods import Run, size, train_fxcat
from frontier_tasks import TASKS, loaded
from matplotlib.figure import Figure
from summaries import figures
from training import accuracy
from workers import Job, run_jobs

import fxcat

METHODS: dict[str, dict[str, Any]] = {
    "MACs, any width": {"round_to": 1},
    "MACs, round_to=8": {"round_to": 8},
    "latency": {},
}
"""What is meant by a share, and how widths are chosen: options of `prepare`."""


def table_of(name: str, folder: Path, example: torch.Tensor) -> Path:
    """The file of the dense network's latency table; measured if it is not there."""
    path = folder / f"{name}_{example.shape[-1]}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        net = fxcat.prepare(TASKS[name].build(1.0), example, verbose=False)
        fxcat.LatencyTable.measure(net, "onnxruntime", batch=1, threads=1).save(path)
    return path


def train(key: dict[str, Any], folder: Path | None, table: Path) -> dict[str, Any]:
    """The row of a key."""
    task = TASKS[key["model"]]
    data = loaded(key["model"], folder, key["size"], key["images"])
    precision = AUTOCAST[key["precision"]]
    run = Run(task, data, key["epochs"], task.lr, key["seed"], key["share"], task.batches, precision)
    torch.manual_seed(run.seed)
    batches, test = run.batches(data, run.seed)
    by_time = key["target"] == "latency"
    target = fxcat.Target(latency=key["share"]) if by_time else fxcat.Target(flops=key["share"])
    times = fxcat.LatencyTable.load(table) if by_time else None
    start = time.perf_counter()
    model = train_fxcat(task.build(1.0), batches, run, target, times, **METHODS[key["target"]])
    seconds = round(time.perf_counter() - start, 1)
    return {"accuracy %": 100 * accuracy(model, test), **size(model, task.build(1.0), run.example), "seconds": seconds}


def jobs_of(options: argparse.Namespace) -> list[Job]:
    jobs: list[Job] = []
    for name in options.models:
        table = table_of(name, options.tables, TASKS[name].example(options.size))
        for seed in range(options.seeds):
            for method in METHODS:
                for share in options.latencies if method == "latency" else options.flops:
                    key: dict[str, Any] = {"model": name, "target": method, "share": share, "seed": seed}
                    key |= {"epochs": options.epochs, "size": options.size, "images": options.train_images}
                    key |= {"precision": options.precision}
                    jobs.append(Job(key, partial(train, key, options.cifar, table), "training"))
    return jobs


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cifar = [name for name, task in TASKS.items() if task.data == "cifar10"]
    parser.add_argument("--models", nargs="*", default=["resnet20"], choices=cifar)
    parser.add_argument("--flops", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--latencies", nargs="*", type=float, default=[0.6, 0.4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=16, help="of the images")
    parser.add_argument("--precision", default="bf16", choices=AUTOCAST, help="of training, everybody's")
    parser.add_argument("--train-images", type=int, help="only so many, the same ones for everybody")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, in processes of one thread each")
    parser.add_argument("--cifar", type=Path, help="an ImageFolder of CIFAR-10; downloaded without")
    parser.add_argument("--tables", type=Path, default=Path("runs/latency_tables"), help="folder of latency tables")
    parser.add_argument("--plot", type=Path, help="an image file for the curves")
    parser.add_argument("--json", type=Path, default=Path("runs/accuracy_over_latency.json"))
    return parser


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds, in the order of the measured time."""
    names = ("model", "target", "share")
    rows = sorted(rows, key=lambda r: [str(r[n]) for n in names])
    groups = [list(some) for _, some in groupby(rows, key=lambda r: [r[n] for n in names])]
    groups.sort(key=lambda some: (some[0]["model"], statistics.median(r["latency ÷ dense"] for r in some)))
    return [{n: some[0][n] for n in names} | figures(some) for some in groups]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per model, one curve per meaning of the target: accuracy over measured latency."""
    models = list(dict.fromkeys(r["model"] for r in rows))
    figure = Figure(figsize=(6 * len(models), 4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for method, mark in zip(METHODS, "osD", strict=True):
            found = [r for r in summary(rows) if (r["model"], r["target"]) == (model, method)]
            if found:
                points = [(float(r["÷ dense"]), float(r["accuracy %"])) for r in found]
                axes.plot(*zip(*points, strict=True), marker=mark, label=f"target in {method}")
        axes.set(title=model, xlabel="latency of the ONNX file ÷ dense", ylabel="test accuracy, %")
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments().parse_args()
    rows = run_jobs(options.json, jobs_of(options), options.workers)
    if rows:
        print_table("accuracy over latency, mean over seeds", summary(rows))
        if options.plot:
            plot(rows, options.plot)


if __name__ == "__main__":
    main()
