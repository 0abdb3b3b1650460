"""`export_source` on torchvision's models: the file runs in a process that has no fxcat, with equal outputs.

    python benchmarks/export_source.py --all --workers 2

Each model, with random weights and gates, is prepared, finalized and written in a process of its own; another one
reads the file, where neither fxcat nor safetensors can be imported, and compares to the bit. Finished rows are kept in
the JSON file and not repeated. Where a model has no source form (detectors), the row says what the error says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import print_table
from exactness import random_gates, randomise
from workers import Job, run_jobs
from zoo import DETECTION, build, shapes, trainable

import fxcat

_ALONE = """
import sys
for name in ("fxcat", "safetensors"):
    sys.modules[name] = None
sys.path.insert(0, ".")
import torch
torch.set_num_threads(1)
pair = torch.load("pair.pt")
import network
made = network.load()
with torch.no_grad():
    found = made(*pair["inputs"])
def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key in value for t in flat(value[key])]
    return [t for item in value for t in flat(item)] if isinstance(value, (list, tuple)) else []
equal = [torch.equal(a, b) for a, b in zip(flat(found), pair["outputs"], strict=True)]
try:
    torch.jit.script(made)
    scripted = "yes"
except Exception as error:
    scripted = type(error).__name__
assert equal and list(made.state_dict()) and made.state_dict().keys() == set(pair["keys"])
print(all(equal), scripted, "torchvision" in sys.modules)
"""


def run(name: str) -> dict[str, Any]:
    """The row of a model, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", name, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def _one(name: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Any = build(name).eval()
    if name in DETECTION:
        inputs: tuple[Any, ...] = ([torch.rand(3, 96, 128)],)
    else:
        randomise(model, 0)
        inputs = tuple(torch.randn(s) for s in shapes(name)[0])
    start = time.perf_counter()
    row: dict[str, Any] = {"written": False, "equal": None, "lines": 0, "classes": 0, "error": None}
    row |= {"scripted": "", "torchvision": None, "reason": ""}
    try:
        if name in DETECTION:
            fxcat.export_source(model, folder / "network.py", inputs)
        net = fxcat.prepare(model, inputs, verbose=False, verify=False).eval()
        random_gates(net, 1, 0.4, 0.2)
        small = fxcat.finalize(net).eval()
        start = time.perf_counter()
        report = fxcat.export_source(small, folder / "network.py", inputs)
    except fxcat.ExportError as error:
        return row | {"reason": error.what, "export s": round(time.perf_counter() - start, 1)}
    row |= {"written": True, "lines": report.lines, "classes": report.classes, "error": report.max_error}
    row["export s"] = round(time.perf_counter() - start, 1)
    with torch.no_grad():
        outputs = _flat(small(*inputs))
    torch.save({"inputs": inputs, "outputs": outputs, "keys": list(small.state_dict())}, folder / "pair.pt")
    done = subprocess.run([sys.executable, "-c", _ALONE], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return row | {"equal": False, "reason": done.stderr.strip().splitlines()[-1]}
    equal, scripted, torchvision = done.stdout.split()
    return row | {"equal": equal == "True", "scripted": scripted, "torchvision": torchvision == "True"}


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _flat(item)]
    return [t for item in value for t in _flat(item)] if isinstance(value, list | tuple) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="model names; --all for every one")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/export_source.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(_one(options.one, options.folder)) + "\n")
        return
    jobs = [Job({"model": name}, partial(run, name)) for name in (trainable() if options.all else options.models)]
    rows = run_jobs(options.json, jobs, options.workers)
    print_table(f"{len(rows)} models as source", rows)


if __name__ == "__main__":
    main()
