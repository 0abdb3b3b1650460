"""The comparison of `frontier.py` with the usual CIFAR-10 recipe on one GPU, in minutes; and what gates cost there.

    python benchmarks/gpu_frontier.py --cifar path/to/imagefolder --pack cifar10.safetensors    # a file to carry there
    python benchmarks/gpu_frontier.py --packed cifar10.safetensors --minutes 9
    python benchmarks/gpu_frontier.py --cifar path/to/imagefolder --small                       # a minute on a CPU

Three parts, one after another: "exactness" (gated and pruned networks compute the same on the device), "speed" (a gated
step ÷ a plain one, a whole run ÷ a dense one, eagerly and compiled), "frontier" (training at 32×32, the methods of
`frontier.py`). Data lie on the device and are augmented there; several runs are processes that share it. Without
`--epochs` there are as many, at most 200 and the same for all, as fit into what is left of `--minutes`, by the time
that steps take when all workers are busy. Every row is written when it is known; when the time is over the others
are given up, and the same command, with the `--epochs` of the rows that there are, goes on with them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import device_exactness
import device_speed
import torch
from cifar_pack import pack, unpack
from common import print_table
from device_data import batches, on_device
from frontier import summary
from frontier_methods import FXCAT, METHODS, Run, applicable, measured
from frontier_tasks import TASKS
from training import PlainRun
from workers import Job, pool_of, run_jobs

PARTS = ("exactness", "speed", "frontier")
SIZE = 32
MOST_EPOCHS = 200
MARGIN = 0.75
"""Of the time that is left, for steps: runs also begin, prune, and are measured."""
SHARE = 0.2
"""Of the time, at most, for each of the parts before."""
PROBE = 30
CIFAR = [name for name, task in TASKS.items() if task.data == "cifar10"]
PRECISIONS = {"bf16": torch.bfloat16, "tf32": None}
SMALL: dict[str, Any] = {
    "minutes": 30.0,
    "models": ["resnet20"],
    "targets": [0.5],
    "methods": ["dense", "fxcat units+layers"],
    "seed_list": [0],
    "epochs": 2,
    "train_images": 256,
    "test_images": 200,
    "batch_size": 32,
    "workers": 2,
    "precision": "tf32",
    "device": "cpu",
    "exact_models": ["resnet18"],
    "settings": 1,
    "blocks": 2,
    "speed_steps": 12,
    "backend": "eager",
}
"""Everything once, with next to nothing to compute."""


def train(
    method: str, key: dict[str, Any], decoded: Path, flops: float, test_images: int | None, times_export: bool
) -> dict[str, Any]:
    """The row of a key."""
    images, labels, test, test_labels = on_device(decoded, key["device"], key["images"])
    data = images, labels, test[:test_images], test_labels[:test_images]
    run = Run(
        *(TASKS[key["model"]], data, key["epochs"], key["lr"], key["seed"], flops),
        batches=partial(batches, batch_size=key["batch"]),
        autocast=PRECISIONS[key["precision"]],
        times_export=times_export,
    )
    return measured(method, run)


def step_seconds(name: str, decoded: Path, options: argparse.Namespace) -> float:
    """Of the dense network. As many of these as there are workers run at the same time."""
    data = on_device(decoded, options.device, options.train_images)
    some, _ = batches(data, 0, options.batch_size)
    run = PlainRun(TASKS[name].build(1.0).to(options.device), 0.1, PROBE + 1, PRECISIONS[options.precision])
    chosen = [batch for _, batch in zip(range(PROBE), some, strict=False)]
    run.epoch(chosen[:1])
    start = time.perf_counter()
    run.epoch(chosen[1:])
    next(run.model.parameters()).sum().item()  # waits for the device
    return (time.perf_counter() - start) / len(chosen[1:])


def makespan(seconds: list[float], workers: int) -> float:
    """When the last of these jobs ends, each taken by the first worker that is free."""
    free = [0.0] * workers
    for job in seconds:
        free[free.index(min(free))] += job
    return max(free)


def fitting_epochs(models: list[str], pool: Pool, decoded: Path, options: argparse.Namespace, deadline: float) -> int:
    """How many fit into the time that is left; `models`: that of every job, in order."""
    calls = {name: [(name, decoded, options)] * options.workers for name in dict.fromkeys(models)}
    step = {name: max(pool.starmap(step_seconds, same, chunksize=1)) for name, same in calls.items()}
    count = len(on_device(decoded, "cpu", options.train_images)[0]) // options.batch_size
    one = makespan([count * step[name] for name in models], options.workers)
    epochs = min(MOST_EPOCHS, int(MARGIN * (deadline - time.monotonic()) / one))
    shown = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in step.items())
    print(f"a step with {options.workers} workers: {shown}; {len(models)} runs of {epochs} epochs", flush=True)
    if epochs < 2:
        sys.exit("not even two epochs fit: fewer runs, or more --minutes")
    return epochs


def frontier(decoded: Path, options: argparse.Namespace, deadline: float) -> None:
    """Train, and print what is known at the end of the time."""
    listed: list[tuple[str, float, str, int]] = []
    for name in options.models:
        example = TASKS[name].example(SIZE)
        for flops in options.targets:
            methods = applicable(TASKS[name], example, options.methods, flops)
            listed += [(name, flops, method, seed) for seed in options.seed_list for method in methods]
    # a dense network is a row of every target, and trained once
    once = {(name, 1.0 if m == "dense" else flops, m, seed): flops for name, flops, m, seed in listed}
    with pool_of(options.workers) as pool:
        epochs = options.epochs or fitting_epochs([name for name, *_ in once], pool, decoded, options, deadline)
        jobs: list[Job] = []
        for (name, share, method, seed), flops in once.items():
            key: dict[str, Any] = {"model": name, "flops": share, "method": method, "seed": seed, "epochs": epochs}
            key |= {"size": SIZE, "images": options.train_images, "lr": options.lr or TASKS[name].lr}
            key |= {"batch": options.batch_size, "precision": options.precision, "device": options.device}
            call = partial(train, method, key, decoded, flops, options.test_images, options.latency)
            jobs.append(Job(key, call, "training" if method in FXCAT else "nothing"))
        rows = run_jobs(options.json, jobs, pool=pool, deadline=deadline)
    found = {(r["model"], r["flops"], r["method"], r["seed"]): r for r in rows}
    chosen: list[dict[str, Any]] = []
    for name, flops, method, seed in listed:
        row = found.get((name, 1.0 if method == "dense" else flops, method, seed))
        chosen += [] if row is None else [row | {"target": flops}]
    if chosen:
        print_table(f"accuracy at the same cost, {epochs} epochs, mean over seeds", summary(chosen))


def exactness(options: argparse.Namespace) -> None:
    jobs: list[Job] = []
    for name in options.exact_models:
        for dtype in (torch.float64, torch.float32):
            key: dict[str, Any] = {"part": "exactness", "model": name, "dtype": str(dtype).removeprefix("torch.")}
            key |= {"device": options.device, "settings": options.settings}
            call = partial(device_exactness.measured, name, options.device, dtype, options.settings)
            jobs.append(Job(key, call))
    rows = apart(jobs, options)
    if rows:
        print_table("gated and pruned networks on the device, relative differences", rows)
    print(f"{sum(row['failures'] for row in rows)} failures in {len(rows)} of {len(jobs)} checks")


def speed(decoded: Path, options: argparse.Namespace) -> None:
    jobs: list[Job] = []
    for compiled in (False, True):
        for name in options.models:
            key: dict[str, Any] = {"part": "speed", "model": name, "compiled": compiled, "batch": options.speed_batch}
            key |= {"steps": options.speed_steps, "flops": options.targets[0], "backend": options.backend}
            key |= {"precision": options.precision, "device": options.device}
            call = partial(speed_of, name, decoded, compiled, options)
            jobs.append(Job(key, call))
    rows = apart(jobs, options)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if rows:
        print_table("what gates cost", [{column: row.get(column, "") for column in columns} for row in rows])


def apart(jobs: list[Job], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One after another in a process of their own: its settings and memory go with it, and it can be ended."""
    with pool_of(1) as pool:
        return run_jobs(options.json, jobs, pool=pool, deadline=time.monotonic() + 60 * SHARE * options.minutes)


def speed_of(name: str, decoded: Path, compiled: bool, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    data = on_device(decoded, options.device, options.train_images)
    return device_speed.measured(
        partial(TASKS[name].build, 1.0),
        batches(data, 0, options.speed_batch)[0],
        compiled=compiled,
        flops=options.targets[0],
        blocks=options.blocks,
        steps=options.speed_steps,
        autocast=PRECISIONS[options.precision],
        backend=options.backend,
    )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--cifar", type=Path, help="an ImageFolder of CIFAR-10")
    data.add_argument("--packed", type=Path, help="what --pack wrote")
    parser.add_argument("--pack", type=Path, help="write the data of --cifar as one file, and end")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--minutes", type=float, default=9.0, help="of wall time, for all parts")
    parser.add_argument("--small", action="store_true", help="everything once, with next to nothing to compute")
    parser.add_argument("--models", nargs="*", default=["resnet20", "resnet56"], choices=CIFAR)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--targets", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--seed-list", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of as many as fit")
    parser.add_argument("--lr", type=float, help="the highest learning rate, instead of the task's")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, help="only so many, the same ones for everybody")
    parser.add_argument("--test-images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="autocast, or TF32 where it is allowed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--latency", action="store_true", help="of the exported networks too, as frontier.py has it")
    parser.add_argument("--exact-models", nargs="*", default=device_exactness.MODELS)
    parser.add_argument("--settings", type=int, default=2, help="random gate settings per checked model")
    parser.add_argument("--speed-batch", type=int, default=512)
    parser.add_argument("--speed-steps", type=int, default=400, help="of a whole run")
    parser.add_argument("--blocks", type=int, default=20, help="of steps, to time one")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu_frontier.json"))
    return parser


def main() -> None:
    deadline = time.monotonic()
    parser = arguments()
    options = parser.parse_args()
    if options.small:
        parser.set_defaults(**SMALL, speed_batch=SMALL["batch_size"])
        options = parser.parse_args()
    deadline += 60 * options.minutes
    if options.pack:
        if options.cifar is None:
            parser.error("--pack needs --cifar")
        pack(options.cifar, options.pack)
        print(f"{options.pack}: {options.pack.stat().st_size / 2**20:.1f} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        packed, decoded = options.packed or Path(folder) / "packed", Path(folder) / "decoded"
        if options.packed is None:
            pack(options.cifar, packed)
        unpack(packed, decoded)
        if "exactness" in options.parts:
            exactness(options)
        if "speed" in options.parts:
            speed(decoded, options)
        if "frontier" in options.parts:
            frontier(decoded, options, deadline)


if __name__ == "__main__":
    main()
