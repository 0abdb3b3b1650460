"""What the benchmarks share: the models, JSON files, tables, and the tests' invariant checks."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

FAMILIES = (
    *("alexnet", "vgg", "resnet", "resnext", "wide_resnet", "densenet", "googlenet", "inception_v3", "mobilenet_v2"),
    *("mobilenet_v3", "mnasnet", "efficientnet", "regnet", "shufflenet_v2", "squeezenet"),
)


def classifiers() -> list[str]:
    """torchvision's convolutional classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [n for n in names if n.startswith(FAMILIES)]


def build(name: str) -> nn.Module:
    """A torchvision model without pretrained weights; the slow truncated-normal initialisation is skipped."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


def environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }


def write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), "rows": list(rows)}, indent=1) + "\n")


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()])
    Console(width=160).print(table)
