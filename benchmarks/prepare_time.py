"""Wall time of `fxcat.prepare` against torch-pruning's graph building, in the same run; and prepare's peak memory.

    python benchmarks/prepare_time.py

One thread, alternating repeats with a garbage collection before each (the peer leaves cycles behind), medians. Memory:
growth of the anonymous resident set in a fresh process, against the size of the weights and against what
`copy.deepcopy(model)` takes, the least that leaves the caller's model untouched.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from common import print_table, write_json
from zoo import build

import fxcat

MODELS = ("resnet18", "resnet50", "resnet152", "densenet201", "efficientnet_b7", "regnet_y_16gf")


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
    model = build(name).eval()
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory that is only reused would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("RssAnon")
    result = copy.deepcopy(model) if copy_only else fxcat.prepare(model, torch.empty(1, 3, 224, 224), verbose=False)
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
    example = torch.randn(1, 3, 224, 224)
    rows: list[dict[str, Any]] = []
    for name in options.models:
        model = build(name).eval()
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(options.repeats):
            ours.append(seconds(lambda m=model: fxcat.prepare(m, example, verbose=False)))
            theirs.append(seconds(lambda m=model: tp.DependencyGraph().build_dependency(m, example_inputs=example)))
        memory, plain = measured_apart(name), measured_apart(name, "--copy-only")
        rows.append(
            {
                "model": name,
                "fxcat s": statistics.median(ours),
                "torch-pruning s": statistics.median(theirs),
                "ratio": statistics.median(ours) / statistics.median(theirs),
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
