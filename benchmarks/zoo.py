"""Models of other people's packages: prepared, exact, with true costs, and how much of them can go.

    pip install timm transformers ultralytics segmentation-models-pytorch monai diffusers vit-pytorch einops
    python benchmarks/zoo.py timm transformers --workers 2
    python benchmarks/zoo.py timm --peer 100    # torch-pruning beside it, on a fixed sample

Every model runs in a process of its own with limits of memory and of processor time; finished rows are kept in the JSON
file and not repeated. Random weights, well scaled; double precision up to 150 M parameters, where a model keeps
to it. "exact": with open gates the network computes what the model computes in eval() and train(), and under random
gate settings what `finalize` leaves computes what the gated network does. "costs": MACs and parameters told are those
counted. "share": of the MACs, that can be pruned. "onnx": for a sample, verified in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import add_row, finished_row, finished_rows
from exactness import check_on, randomise
from torch.utils._pytree import tree_map
from zoo_models import PACKAGES, TooLarge, sample, takes

import fxcat
from fxcat.passes.verification import Casts

LARGE = 150_000_000
SETTINGS = 2
PEER = "torch-pruning"


def report(row: dict[str, Any]) -> None:
    """What is known so far, as a line: the last one counts, also of a process that is stopped."""
    print(json.dumps(row | {"memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}), flush=True)


def attempt(package: str, name: str, onnx: bool) -> None:
    """All steps for one model."""
    start = time.perf_counter()
    row: dict[str, Any] = {"step": "build"}
    report(row)
    try:
        model, example, others = PACKAGES[package][1](name)
    except TooLarge as error:
        report(row | {"step": "left out", "reason": str(error)})
        return
    except Exception as error:
        report(row | {"step": "not built", "reason": _line(error)})
        return
    if not takes(model, example):
        report(row | {"step": "not built", "reason": "it does not run on the example"})
        return
    params = sum(p.numel() for p in model.parameters())
    row |= {"step": "prepare", "parameters": params}
    report(row)
    in_double = tree_map(_doubled, (example, others))
    if params <= LARGE and _computes_in_double(model.double(), in_double[0]):
        example, others = in_double
    else:
        model = model.float()
    randomise(model, 0)
    model.train()
    if not takes(model, others):  # it takes one image only
        others = example
    try:
        start_of_prepare = time.perf_counter()
        net = fxcat.prepare(model, example, verify=False, verbose=False)
    except fxcat.FxcatError as error:
        report(row | {"step": "refused", "prepared": False, "reason": _line(error)})
        return
    except Exception as error:
        report(row | {"step": "refused", "prepared": False, "reason": f"raw error: {_line(error)}"})
        return
    structure = net.structure
    row |= {
        **{"step": "check", "prepared": True, "prepare s": round(time.perf_counter() - start_of_prepare, 2)},
        **{"share": round(structure.coverage, 4), "sections": len(structure.sections)},
        **{"units": sum(g.units for g in structure.groups), "pinned": _reasons(structure.pinned)},
    }
    report(row)
    del net
    row |= _checked(model, name, example, others)
    if onnx and row["exact"]:
        report(row | {"step": "onnx"})
        row["onnx"] = _exported(model.float().eval(), tree_map(_single, example))
    report(row | {"step": "done", "seconds": round(time.perf_counter() - start, 1)})


def _checked(model: torch.nn.Module, name: str, example: tuple[Any, ...], others: tuple[Any, ...]) -> dict[str, Any]:
    """Whether it is exact with true costs, in training too if the model trains on these inputs."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        with torch.no_grad():
            model.train()(*others)
        training = others
    except Exception:
        training = None
    model.load_state_dict(state)
    try:
        failures = check_on(model, name, example, others, training, settings=SETTINGS).failures
    except Exception as error:
        return {"exact": False, "costs": False, "reason": _line(error)}
    costs = [f for f in failures if f.startswith("I3")]
    exact = [f for f in failures if not f.startswith("I3")]
    row: dict[str, Any] = {"exact": not exact, "costs": not costs, "trained": training is not None}
    return row | ({"reason": failures[0]} if failures else {})


def _exported(model: torch.nn.Module, example: tuple[Any, ...]) -> bool | str:
    net = fxcat.prepare(model, example, verify=False, verbose=False)
    for gate in net.gates.values():
        if gate.kind == "units":
            gate.theta[1::2] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        try:
            fxcat.export_onnx(fxcat.finalize(net), Path(folder) / "model.onnx", example)
        except fxcat.FxcatError as error:
            return _line(error)
    return True


def attempt_peer(package: str, name: str) -> None:
    """torch-pruning: half of every group, and a forward pass."""
    from peers import TorchPruning

    row: dict[str, Any] = {"step": "build"}
    try:
        model, example, _ = PACKAGES[package][1](name)
        before = sum(p.numel() for p in model.parameters())
        runner = TorchPruning(model.eval(), example)
        for step in ("build", "prune", "forward"):
            row["step"] = step
            getattr(runner, step)()
        row |= {"step": "done", "pruned": sum(p.numel() for p in runner.model.parameters()) < before}
    except Exception as error:
        row["reason"] = _line(error)
    report(row)


def _computes_in_double(model: torch.nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a model runs on inputs of double precision, and casts none of its values to a lower one."""
    with Casts() as casts:
        runs = takes(model, args)
    return runs and not casts.types


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _line(error: Exception) -> str:
    where = f" [{error.where}]" if isinstance(error, fxcat.FxcatError) and error.where else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{where}"[:300]


def _reasons(pinned: Any) -> dict[str, int]:
    """How many indices each reason keeps, most first."""
    counts: Counter[str] = Counter()
    for p in pinned:
        counts[p.reason] += p.count
    counts.pop("output of the network", None)
    return dict(counts.most_common(8))


def attempt_apart(tool: str, package: str, name: str, limit: int, memory: int, onnx: bool) -> dict[str, Any]:
    """The last line of a process of its own, and why it ended if it did not come to an end."""
    command = [
        sys.executable,
        __file__,
        package,
        "--attempt",
        tool,
        name,
        "--limit",
        str(limit),
        "--memory",
        str(memory),
    ]
    done = subprocess.run(
        [*command, *(["--onnx-one"] if onnx else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    row: dict[str, Any] = json.loads(lines[-1]) if lines else {"step": "start"}
    if done.returncode:
        stopped = f"more than {limit} s" if done.returncode == -signal.SIGXCPU else f"exit code {done.returncode}"
        row["reason"] = f"in {row['step']}: {stopped}"
        row["step"] = "stopped"
    return row


def summary(tool: str, package: str, rows: list[dict[str, Any]]) -> str:
    """A line of counts."""
    out = [r for r in rows if r["step"] in ("left out", "not built")]
    own = [r for r in rows if r not in out]
    if tool == PEER:
        return f"{package}, {tool}: {sum(bool(r.get('pruned')) for r in own)} of {len(own)} pruned and run"
    done = [r for r in own if r.get("prepared")]
    good = [r for r in done if r.get("exact") and r.get("costs")]
    onnx = [r for r in own if "onnx" in r]
    return (
        f"{package}: {len(done)} of {len(own)} prepared, {len(good)} exact with true costs, "
        f"{sum(r['share'] >= 0.95 for r in done)} with at least 95 % of their MACs prunable; "
        f"ONNX {sum(r['onnx'] is True for r in onnx)} of {len(onnx)}; {len(out)} left out or not built"
    )


def run_all(tool: str, package: str, names: list[str], options: argparse.Namespace) -> None:
    """All models of a package that have no row yet, several at a time."""
    rows = finished_rows(options.json)
    checked = set(sample(names, options.onnx)) if options.onnx else set[str]()
    keys: dict[str, dict[str, Any]] = {name: {"tool": tool, "package": package, "model": name} for name in names}
    own = tool == "fxcat"
    left = [n for n in names if finished_row(rows, keys[n], measures_library=own) is None]
    call: Callable[[str], dict[str, Any]] = partial(_called, tool, package, options, checked)
    with ThreadPoolExecutor(options.workers) as pool:
        for name, row in zip(left, pool.map(call, left), strict=True):
            add_row(options.json, rows, keys[name], row, measures_library=own)
    found = [finished_row(rows, keys[n], measures_library=own) for n in names]
    chosen = [r for r in found if r is not None]
    for row in chosen:
        if row.get("reason") or row.get("share", 1) < 0.95:
            reason = row.get("reason") or f"{row['share']:.0%} prunable: {row['pinned']}"
            print(f"  {row['model']}: {row['step']}: {reason}")
    print(summary(tool, package, chosen))


def _called(tool: str, package: str, options: argparse.Namespace, checked: set[str], name: str) -> dict[str, Any]:
    return attempt_apart(tool, package, name, options.limit, options.memory, name in checked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", choices=[*PACKAGES, []], help="all by default")
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--onnx", type=int, default=20, help="so many models of each package are exported")
    parser.add_argument("--peer", type=int, default=0, help="torch-pruning on so many models of each package")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=int, default=900, help="seconds of processor time per model")
    parser.add_argument("--memory", type=int, default=16, help="GiB of memory per model")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/zoo.json"))
    parser.add_argument("--attempt", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--onnx-one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attempt:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory << 30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 10))
        tool, name = options.attempt
        package = options.packages[0]
        if tool == PEER:
            attempt_peer(package, name)
        else:
            attempt(package, name, options.onnx_one)
        return
    for package in options.packages or PACKAGES:
        names = PACKAGES[package][0]()
        names = [n for n in names if options.only is None or n in options.only]
        run_all("fxcat", package, names, options)
        if options.peer:
            run_all(PEER, package, list(sample(names, options.peer)), options)


if __name__ == "__main__":
    main()
