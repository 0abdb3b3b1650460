"""Which versions of the library train the same weights, to the bit: rows of `frontier.py` and its like stay valid then.

    python benchmarks/witness.py

Trains ResNet-20 by each choice of gates, under a target and under a pressure, and VGG-16 with bypasses, for a few steps
on random images, until structures have left; a hash of all final weights is kept beside the hash of the library in
`results/versions.json`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from common import VERSIONS, library
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


def trained(task: Task, method: str, objective: dict[str, Any]) -> nn.Module:
    """The small network after a short run in bf16, as most rows have it."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, *task.example(SIZE).shape[1:])
    data = (images, torch.randint(10, (IMAGES,)), images[:500], torch.zeros(500, dtype=torch.int64))
    net = fxcat.prepare(task.build(1.0), task.example(SIZE), verbose=False, **FXCAT[method])
    train, _ = task.batches(data, 0)
    fxcat.fit(net, train, epochs=EPOCHS, lr=task.lr, autocast=torch.bfloat16, seed=0, progress=False, **objective)
    return fxcat.finalize(net)


def digest(models: list[nn.Module]) -> str:
    found = hashlib.sha256()
    for model in models:
        for name, value in model.state_dict().items():
            found.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return found.hexdigest()[:12]


def main() -> None:
    torch.set_num_threads(1)
    witness = digest([trained(TASKS[model], method, objective) for model, method, objective in RUNS])
    known = json.loads(VERSIONS.read_text())
    alike = sorted(name for name, other in known.items() if other == witness and name != library())
    VERSIONS.write_text(json.dumps(known | {library(): witness}, indent=1) + "\n")
    print(f"{library()}: {witness}, as {', '.join(alike) or 'no other version'}")


if __name__ == "__main__":
    main()
