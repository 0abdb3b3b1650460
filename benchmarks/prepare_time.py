"""Wall time of `fxcat.prepare` against torch-pruning's graph building, in the same run; and prepare's peak memory.

    python benchmarks/prepare_time.py

One thread, alternating repeats with a garbage collection before each (the peer leaves cycles behind), medians. Memory:
growth of the anonymous resident set in a fresh process, against the size of the weights and against what
`copy.deepcopy(model)` takes, the least that leaves the caller's model untouched.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from common import print_table, write_json
from detectors import build as build_detector
from detectors import inputs as detector_inputs
from torch import nn
from zoo import DETECTION, FLOW, VIDEO, build, shapes

import fxcat

MODELS = ("resnet18", "resnet50", "resnet152", "densenet201", "efficientnet_b7", "regnet_y_16gf")


def model_and_example(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model in eval mode, with one image of 224×224 or what its kind takes."""
    if name in DETECTION:
        return build_detector(name).eval(), detector_inputs(torch.float32)[0]
    sizes = shapes(name)[0] if name in FLOW or name in VIDEO else ((1, 3, 224, 224),)
    return build(name).eval(), tuple(torch.zeros(s) for s in sizes)


def graph_of_peer(model: nn.Module, example: tuple[Any, ...]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(model, example_inputs=example)


def seconds(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def peak_growth(name: str, *, copy_only: bool) -> dict[str, int]:
    """Run in a process of its own (Linux): by how much the resident set grew at most, and the bytes of the weights."""
    torch.set_num_threads(1)
    fxcat.prepare(build("squeezenet1_1"), torch.empty(1, 3, 64, 64), verbose=False)  # load what is loaded lazily
    model, example = model_and_example(name)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory that is only reused would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("RssAnon")
    result = copy.deepcopy(model) if copy_only else fxcat.prepare(model, example, verbose=False)
    # pages of libraries that are read for the first time are the system's to drop
    peak = status("VmHWM") - status("RssFile") - status("RssShmem")
    del result
    return {"weights": weights, "growth": peak - before}


def measured_apart(name: str, *flags: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-of", name, *flags]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path("runs/prepare_time.json"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--copy-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(peak_growth(options.memory_of, copy_only=options.copy_only)))
        return
    torch.set_num_threads(1)
    torch.ones(2**28)  # a virtual machine gets its memory when it is touched for the first time
    rows: list[dict[str, Any]] = []
    for name in options.models:
        model, example = model_and_example(name)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(options.repeats):
            ours.append(seconds(lambda m=model, x=example: fxcat.prepare(m, x, verbose=False)))
            with contextlib.suppress(Exception):  # it fails on some models; their rows then have no ratio
                theirs.append(seconds(lambda m=model, x=example: graph_of_peer(m, x)))
        memory, plain = measured_apart(name), measured_apart(name, "--copy-only")
        rows.append(
            {
                "model": name,
                "fxcat s": statistics.median(ours),
                "torch-pruning s": statistics.median(theirs) if theirs else None,
                "ratio": statistics.median(ours) / statistics.median(theirs) if theirs else None,
                "weights MB": memory["weights"] / 1e6,
                "peak growth MB": memory["growth"] / 1e6,
                "growth / weights": memory["growth"] / memory["weights"],
                "growth / deepcopy": memory["growth"] / plain["growth"],
            }
        )
        write_json(options.json, rows)
    print_table(f"prepare against build_dependency, one thread, {options.repeats} repeats", rows)


if __name__ == "__main__":
    main()
