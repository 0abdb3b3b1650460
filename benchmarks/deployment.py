"""Where a small network runs, and how far its outputs are from those of fxcat's own module.

    pip install openvino torchao executorch
    npm install --prefix runs/node onnxruntime-node onnxruntime-web
    python benchmarks/deployment.py

Models of torchvision with well scaled random weights, half of their MACs gone by `one_shot`; "digits": a network that
was trained on those of scikit-learn, so that accuracy can be told, and training with INT8 compared. A tool gets the
dense and the small network, in a process of its own, on one thread. "error": the largest difference from the PyTorch
module over some images, relative to its largest output; "dense error": the same for the dense network, whose INT8
form is not exact either. "latency ÷ dense": batch 1, the two in alternation, medians of the faster half. A tool that
is not installed gets a line that says so; rows that work are kept in the JSON file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import deployment_digits
import torch
from common import finished_rows, print_table, write_json
from deployment_tools import FILE, Deployed, Images, medians, timed, version_of
from deployment_tools import TOOLS as POST_TRAINING
from models import well_scaled
from torch import nn
from workers import Job, run_jobs

import fxcat

MODELS = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny")
SIZE = 224
TESTED = 4
CALIBRATION = 16
SECONDS = 1800
"""A tool that takes longer for a model is given up."""
QAT = "torchao PT2E, trained with INT8"
"""Needs labels: for the digits alone."""
TOOLS = {**POST_TRAINING, QAT: ("torchao", deployment_digits.trained_with_8_bits)}


def made(name: str, folder: Path) -> None:
    """Write the dense and the small network, their ONNX files, images to calibrate with and others to compare on: once
    for all tools."""
    if name == deployment_digits.NAME:
        dense, small, images = deployment_digits.networks()
        tested = deployment_digits.tested()
    else:
        dense = well_scaled(name)[0]
        images = random_images((3, SIZE, SIZE), CALIBRATION, seed=100)
        tested = random_images((3, SIZE, SIZE), TESTED, seed=1)
        net = fxcat.prepare(dense, images[0], verbose=False)
        fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.5))
        small = fxcat.finalize(net).eval()
    for part, module in (("dense", dense), ("small", small)):
        (folder / part).mkdir()
        fxcat.export_onnx(module, folder / part / FILE, images[0], input_names=["x"], verify=False)
    torch.save((dense, small, images, tested), folder / "networks.pt")


def random_images(shape: tuple[int, ...], count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *shape, generator=generator) for _ in range(count)]


def error(module: nn.Module, deployed: Deployed, images: Images) -> float:
    """The largest difference of an output, relative to the largest output of its image."""
    worst = 0.0
    for x in images:
        with torch.no_grad():
            wanted = module(x)
        worst = max(worst, float((deployed(x)[0] - wanted).abs().max() / wanted.abs().max()))
    return worst


def measured(tool: str, name: str, folder: Path, repeats: int) -> dict[str, Any]:
    package, deploy = TOOLS[tool]
    found = version_of(package)
    dense, small, images, tested = torch.load(folder / "networks.pt", weights_only=False)
    runs = [deploy(module, images, folder / part) for part, module in (("dense", dense), ("small", small))]
    errors = [error(module, run, tested) for module, run in zip((dense, small), runs, strict=True)]
    note = ""
    if name == deployment_digits.NAME:
        accuracies = deployment_digits.accuracy(runs[1]), deployment_digits.accuracy(timed(small))
        note = "accuracy {:.1f} %, of the module {:.1f} %".format(*accuracies)
    reference, own = medians(runs, images[0], repeats)
    return {
        "works": "yes",
        "error": errors[1],
        "dense error": errors[0],
        "latency ÷ dense": own / reference,
        "ms": own,
        "note": note,
        "version": found,
    }


def row(tool: str, name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """The row of a tool and a model, from a process of its own: what it says if it fails there."""
    ready = folder / name
    if not ready.exists():
        unfinished = folder / f"{name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        apart("--make", name, str(unfinished))
        unfinished.rename(ready)
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(shutil.copytree(ready, Path(scratch) / name))  # tools write their files beside
        try:
            return json.loads(apart("--one", tool, name, str(own), "--repeats", str(repeats)))
        except subprocess.TimeoutExpired:
            return failed(f"not within {SECONDS} s")
        except RuntimeError as error:
            return failed(str(error))


def apart(*arguments: str) -> str:
    """The last line that this file prints in a process of its own. Raises `RuntimeError` with the last line of its
    errors."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return (done.stdout.splitlines() or [""])[-1]


def failed(why: str) -> dict[str, Any]:
    empty = dict.fromkeys(("error", "dense error", "latency ÷ dense", "ms"))
    return {"works": why[:100], **empty, "note": "", "version": ""}


def one(tool: str, name: str, folder: Path, repeats: int) -> dict[str, Any]:
    try:
        return measured(tool, name, folder, repeats)
    except ModuleNotFoundError as missing:
        return failed(f"not installed: {missing.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=(*MODELS, deployment_digits.NAME))
    parser.add_argument("--tools", nargs="*", help="parts of their names; all by default")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, default=Path("runs/deployment.json"))
    parser.add_argument("--folder", type=Path, help="networks that an earlier call made, or where to keep them")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make or options.one:
        torch.set_num_threads(1)
        torch.manual_seed(0)
    if options.make:
        return made(options.make[0], Path(options.make[1]))
    if options.one:
        tool, name, folder = options.one
        return print(json.dumps(one(tool, name, Path(folder), options.repeats)))
    known = finished_rows(options.json)
    if known:
        write_json(options.json, [r for r in known if r["works"] == "yes"])
    wanted = [(t, m) for m in options.models for t in TOOLS if m == deployment_digits.NAME or t != QAT]
    if options.tools:
        wanted = [(t, m) for t, m in wanted if any(part in t for part in options.tools)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        jobs = [Job({"model": m, "tool": t}, partial(row, t, m, folder, options.repeats)) for t, m in wanted]
        print_table("small networks elsewhere", run_jobs(options.json, jobs))


if __name__ == "__main__":
    main()
