"""All analyses of a model's graph, without gates."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcat.errors import CaptureError
from fxcat.passes.analyses import ANALYSES
from fxcat.passes.capture.capture import capture
from fxcat.passes.pipeline import run
from fxcat.passes.work import Analysis, Options, Work


def analysed(model: nn.Module, example_inputs: Any) -> Analysis:
    """What the steps find of a model, whose data do not matter."""
    captured = capture(model, example_inputs)
    return run(ANALYSES, Work(captured.name, model, Options(), captured=captured), CaptureError).analysis
