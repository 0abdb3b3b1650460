"""fxcat and torch-pruning side by side: build, remove half of every group, run, export to ONNX with equal outputs.

    python benchmarks/peers.py --all

Every attempt runs in a process of its own with limits of memory and of processor time (what else the machine is doing
does not count); finished rows are kept in the JSON file and not repeated. A cell is the seconds it took, or the first
line of what went wrong; "error" is the largest difference between ONNX Runtime and PyTorch, relative to max(1, largest
output): above 1e-4 is a failure. "build": `fxcat.prepare`, and torch-pruning's dependency graph (its pruner, which
belongs to "prune", makes another). Both remove half of each group: fxcat every other unit, torch-pruning those of least
magnitude, without the layers that give the classes. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import finished_or_run, finished_rows, print_table
from differences import difference
from models import well_scaled
from torch import nn
from zoo import trainable

import fxcat

STEPS = ("build", "prune", "forward", "export")
CLASSES = (1000, 400, 91, 21)


class Fxcat:
    def __init__(self, model: nn.Module, example: tuple[Any, ...]) -> None:
        self.model, self.example, self.unpruned = model, example, model
        self.error: float | None = None

    def build(self) -> None:
        self.net = fxcat.prepare(self.model, self.example, verbose=False)

    def prune(self) -> None:
        for gate in self.net.gates.values():
            if gate.kind == "units":
                gate.theta[1::2] = 0.0
        self.model = fxcat.finalize(self.net)

    def forward(self) -> None:
        with torch.no_grad():
            self.model.eval()(*self.example)

    def export(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                self.error = fxcat.export_onnx(self.model, path, self.example).max_error
            except fxcat.FxcatError:
                try:
                    fxcat.export_onnx(self.unpruned, path, self.example)
                except fxcat.FxcatError as error:
                    raise RuntimeError(f"the unpruned model cannot be exported either: {error}") from error
                raise


class TorchPruning(Fxcat):
    def build(self) -> None:
        import torch_pruning as tp

        tp.DependencyGraph().build_dependency(self.model, example_inputs=self._inputs())

    def prune(self) -> None:
        import torch_pruning as tp

        last = [m for m in self.model.modules() if getattr(m, "out_features", None) in CLASSES]
        last += [m for m in self.model.modules() if getattr(m, "out_channels", None) in CLASSES]
        importance = tp.importance.MagnitudeImportance(p=2)
        arguments: dict[str, Any] = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": last}
        before = sum(p.numel() for p in self.model.parameters())
        tp.pruner.MagnitudePruner(self.model, self._inputs(), **arguments).step()
        if sum(p.numel() for p in self.model.parameters()) == before:
            raise RuntimeError("nothing was removed")

    def _inputs(self) -> Any:
        return self.example[0] if len(self.example) == 1 else self.example

    def export(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.onnx")
            with torch.no_grad():
                expected = self.model(*self.example)
            program: Any = torch.onnx.export(self.model, self.example, path, dynamo=True, verbose=False)
            found = program(*self.example)
            expected = list(expected.values()) if isinstance(expected, dict) else expected
            self.error = difference(list(found), expected if isinstance(expected, list | tuple) else [expected])
            if self.error > 1e-4:
                raise RuntimeError(f"outputs differ by {self.error:.1e}")


TOOLS: dict[str, type[Fxcat]] = {"fxcat": Fxcat, "torch-pruning": TorchPruning}


def attempt(tool: str, name: str) -> None:
    """Run all steps until one fails; after each, print what is known as a line of JSON."""
    runner = TOOLS[tool](*well_scaled(name))
    result: dict[str, Any] = {}
    for step in STEPS:
        call: Callable[[], None] = getattr(runner, step)
        start = time.perf_counter()
        try:
            call()
            result[step] = round(time.perf_counter() - start, 2)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            result[step] = f"{type(error).__name__}: {lines[0]}"[:200]
        print(json.dumps(result | {"error": runner.error}), flush=True)
        if isinstance(result[step], str):
            return


def attempt_apart(tool: str, name: str, limit: int, memory: int) -> dict[str, Any]:
    command = [sys.executable, __file__, name, "--attempt", tool, "--limit", str(limit), "--memory", str(memory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    known: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    unknown = next((step for step in STEPS if step not in known), None)
    if not done.returncode or unknown is None:
        return known
    too_long = done.returncode == -signal.SIGXCPU
    return known | {unknown: f"more than {limit} s in all" if too_long else f"exit code {done.returncode}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="model names; --all for every one")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=[*TOOLS])
    parser.add_argument("--limit", type=int, default=300, help="seconds of processor time per model and tool")
    parser.add_argument("--json", type=Path, default=Path("runs/peers.json"))
    parser.add_argument("--attempt", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, default=16, help="GiB of memory per model and tool")
    options = parser.parse_args()
    if options.attempt:
        resource.setrlimit(resource.RLIMIT_DATA, (options.memory << 30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit + 10))
        attempt(options.attempt, options.models[0])
        return
    names = trainable() if options.all else options.models
    rows = finished_rows(options.json)
    chosen: list[dict[str, Any]] = []
    for name in names:
        for tool in options.tools:
            key: dict[str, Any] = {"model": name, "tool": tool}
            call = partial(attempt_apart, tool, name, options.limit, options.memory)
            row = finished_or_run(options.json, rows, key, call, measures="library" if tool == "fxcat" else "nothing")
            chosen.append(key | {column: row.get(column, "") for column in (*STEPS, "error")})
    print_table("each step: seconds, or what went wrong", chosen)
    for tool in options.tools:
        some = [r for r in chosen if r["tool"] == tool]
        counts = {step: sum(isinstance(r[step], float | int) for r in some) for step in STEPS}
        print(tool, ", ".join(f"{step} {count}/{len(some)}" for step, count in counts.items()))


if __name__ == "__main__":
    main()
