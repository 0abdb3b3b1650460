"""Which versions of the library train the same weights, to the bit: rows of `frontier.py` and its like stay valid then.

    python benchmarks/witness.py
    python benchmarks/witness.py --beside FOLDER --precision fp32    # pip install --no-deps --target FOLDER …

Trains ResNet-20 by each choice of gates, under a target and under a pressure, and VGG-16 with bypasses, for a few steps
on random images, until structures have left; a hash of all final weights is kept beside the hash of the library in
`results/versions.json`. Another machine gives other hashes: there a known version is trained beside this one, and if
the weights are the same, this one has what is kept of that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import VERSIONS, library
from frontier import AUTOCAST
from frontier_methods import FXCAT
from frontier_tasks import TASKS, Task
from torch import nn

import fxcat

IMAGES, EPOCHS, SIZE = 2048, 4, 16
RUNS = (
    ("resnet20", "fxcat units+layers", {"target": fxcat.Target(flops=0.25)}),
    ("resnet20", "fxcat units", {"target": fxcat.Target(flops=0.5)}),
    ("resnet20", "fxcat layers", {"target": fxcat.Target(flops=0.5)}),
    ("resnet20", "fxcat units+layers", {"pressure": fxcat.Pressure(nu=1.0)}),
    ("vgg16_bn_bypassed", "fxcat units+layers", {"target": fxcat.Target(flops=0.25)}),
)


def trained(task: Task, method: str, objective: dict[str, Any], precision: str) -> nn.Module:
    """The small network after a short run."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, *task.example(SIZE).shape[1:])
    data = (images, torch.randint(10, (IMAGES,)), images[:500], torch.zeros(500, dtype=torch.int64))
    net = fxcat.prepare(task.build(1.0), task.example(SIZE), verbose=False, **FXCAT[method])
    train, _ = task.batches(data, 0)
    fxcat.fit(net, train, epochs=EPOCHS, lr=task.lr, autocast=AUTOCAST[precision], seed=0, progress=False, **objective)
    return fxcat.finalize(net)


def digest(models: list[nn.Module]) -> str:
    found = hashlib.sha256()
    for model in models:
        for name, value in model.state_dict().items():
            found.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return found.hexdigest()[:12]


def of_version(folder: Path, precision: str) -> tuple[str, str]:
    """What this script says with another version of the library: its hash, and that of the weights."""
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--print", "--precision", precision]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    version, witness = told.stdout.split()[-2:]
    return version, witness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="bf16", choices=AUTOCAST, help="of training; most rows have bf16")
    parser.add_argument("--beside", type=Path, help="a folder with a version that results/versions.json knows")
    parser.add_argument("--print", action="store_true", help="the hashes, and keep nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    witness = digest([trained(TASKS[m], method, objective, options.precision) for m, method, objective in RUNS])
    if options.print:
        print(library(), witness)
        return
    known = json.loads(VERSIONS.read_text())
    if options.beside is not None:
        other, its_witness = of_version(options.beside, options.precision)
        if witness != its_witness or other not in known:
            sys.exit(f"{library()} trains other weights than {other}, or nothing is known of that")
        witness = known[other]
    alike = sorted(name for name, other in known.items() if other == witness and name != library())
    VERSIONS.write_text(json.dumps(known | {library(): witness}, indent=1) + "\n")
    print(f"{library()}: {witness}, as {', '.join(alike) or 'no other version'}")


if __name__ == "__main__":
    main()
