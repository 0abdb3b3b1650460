"""Running a source file that was written: for those who know what is in it, or were told to."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

from torch import nn

_numbers = itertools.count()


def load_function(file: Path) -> Callable[..., nn.Module]:
    """Execute a file, and return its function `load`. Raises whatever the file does."""
    spec = importlib.util.spec_from_file_location(f"_fxcat_source_{next(_numbers)}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[..., nn.Module] = module.load
    return load
