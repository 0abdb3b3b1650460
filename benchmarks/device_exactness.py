"""Invariants I1–I4 on a device, by the checks of `exactness.py`: gated and pruned networks compute the same there."""

from __future__ import annotations

import time
from typing import Any

import common  # noqa: F401  # the tests' modules are found after it
import torch
from exactness import calibrate, check_on, randomise, tensors
from zoo import build, shapes

MODELS = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t")


def measured(name: str, device: str, dtype: torch.dtype, settings: int) -> dict[str, Any]:
    """A row; single precision is the full one, since TF32 rounds more coarsely than the
    tolerance: it is off from here on, in this process."""
    start = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(1)
    example, inputs = (tuple(x.to(device) for x in tensors(several, dtype, generator)) for several in shapes(name))
    model = build(name)
    randomise(model, 0)
    model.to(device, dtype)
    calibrate(model, inputs)
    with torch.no_grad():
        report = check_on(model, name, example, inputs, inputs, settings=settings)
    return {
        "I1 eval": report.open_eval,
        "I1 train": report.open_train,
        "I2": report.removal,
        "failures": len(report.failures),
        "first failure": report.failures[0] if report.failures else "",
        "seconds": round(time.perf_counter() - start, 1),
    }
