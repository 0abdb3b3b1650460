"""What a model checks with functions of PyTorch (`torch._check` and the like): assertions of the graph."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.tracing import Tracing

_CHECK: Any = torch._check_with  # pyright: ignore[reportPrivateUsage]
_CHECK_ALL: Any = torch._check_tensor_all_with  # pyright: ignore[reportPrivateUsage]


@contextmanager
def checks_traced(tracer: Tracing) -> Generator[None]:
    """While a model is traced: all of PyTorch's checks end in these two functions, which it does not dispatch."""

    def check(error: Any, condition: Any, message: Any = None) -> None:
        if tracer.is_executing or not isinstance(condition, ExampleProxy):
            _CHECK(error, condition, message)
        else:
            _assert(tracer, condition, message)

    def check_all(error: Any, condition: Any, message: Any = None) -> None:
        if tracer.is_executing or not isinstance(condition, ExampleProxy):
            _CHECK_ALL(error, condition, message)
        else:
            _assert(tracer, condition.all(), message)

    with patch.object(torch, "_check_with", check), patch.object(torch, "_check_tensor_all_with", check_all):
        yield


def _assert(tracer: Tracing, condition: Any, message: Any) -> None:
    # a function that makes the text would ask proxies for theirs
    text = message if isinstance(message, str) else "what the model checks does not hold"
    tracer.create_proxy("call_function", torch._assert, (condition, text), {})  # pyright: ignore[reportPrivateUsage]
