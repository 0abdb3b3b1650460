"""Invariants I1–I4 on every torchvision model under random gate settings.

    python benchmarks/exactness.py --all
    pip install timm && python benchmarks/exactness.py --timm    # one small model of each of its families
    python benchmarks/exactness.py --bypasses    # plain networks with residual connections put in

Weights, norm parameters and running statistics are random and well scaled; float64, and float32 above 150 M
parameters. Detectors see small images; their MACs are those of every region alone, on what it got in the example run.
Finished rows are kept in the JSON file and not repeated. Exits with 1 if anything fails.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import timm_families
import torch
from common import finished_or_run, finished_rows, print_table
from detectors import build as build_detector
from detectors import calibrate, inputs
from exactness import check, check_on, randomise
from zoo import DETECTION, FLOW, build, shapes, trainable

import fxcat

LARGE = 150_000_000
TIMM = "timm "
BYPASSED = "bypassed "
PLAIN = ("alexnet", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")


def run(name: str, settings: int) -> dict[str, Any]:
    start = time.perf_counter()
    if name.startswith(TIMM):
        model, *sizes = timm_families.build(name.removeprefix(TIMM))
    elif name.startswith(BYPASSED):
        plain = name.removeprefix(BYPASSED)
        sizes = shapes(plain)
        model = fxcat.add_bypasses(build(plain), torch.zeros(sizes[0][0]), verbose=False)
    else:
        model, sizes = build_detector(name) if name in DETECTION else build(name), shapes(name)
    params = sum(p.numel() for p in model.parameters())
    # RAFT makes single-precision grids itself
    model = model if params > LARGE or name in FLOW else model.double()
    randomise(model, 0)
    if name in DETECTION:
        example, others, training = inputs(torch.float64)
        calibrate(model, others)
        report = check_on(model, name, example, others, training, settings=settings)
    else:
        report = check(model, name, *sizes, settings=settings)
    pinned = [p for p in report.pinned if p.reason != "output of the network"]
    return {
        "model": name,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "groups": report.groups,
        "units": report.units,
        "sections": report.sections,
        "MACs in groups or sections": round(report.coverage, 4),
        "I1 eval": report.open_eval,
        "I1 train": report.open_train,
        "I2": report.removal,
        "prepare s": round(report.prepare_seconds, 2),
        "pinned": [f"{p.where} ({p.count}): {p.reason}" for p in pinned],
        "failures": len(report.failures),
        "first failure": report.failures[0] if report.failures else "",
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="model names; --all for every one")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--timm", action="store_true", help="a model of each of timm's families")
    parser.add_argument("--bypasses", action="store_true", help="torchvision's plain networks with bypasses")
    parser.add_argument("--settings", type=int, default=3, help="random gate settings per model")
    parser.add_argument("--json", type=Path, default=Path("runs/exactness.json"))
    options = parser.parse_args()
    rows = finished_rows(options.json)
    chosen: list[dict[str, Any]] = []
    names = trainable() if options.all else options.models
    names += [TIMM + name for name in timm_families.FAMILIES] if options.timm else []
    names += [BYPASSED + name for name in PLAIN] if options.bypasses else []
    for name in names:
        key: dict[str, Any] = {"model": name, "settings": options.settings}
        chosen.append(finished_or_run(options.json, rows, key, lambda n=name: run(n, options.settings)))
        gc.collect()
    title = f"{len(chosen)} models, random gate settings (what is pinned, and why: in the JSON)"
    print_table(title, [{**row, "pinned": len(row["pinned"])} for row in chosen])
    failures = sum(r["failures"] for r in chosen)
    print(f"{failures} failures in {len(chosen)} models")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
