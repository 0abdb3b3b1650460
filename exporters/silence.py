"""Exporters without their chatter."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Generator

import torch


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """The exporters warn of their own internals, log what they skip and print graphs: none of it is for the user."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.fx.experimental", "onnxscript", "onnx_ir")]
    loggers += [logging.getLogger("torch.fx.experimental.symbolic_shapes")]  # has a level of its own
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quiet_tracing() -> Generator[None, None, None]:
    """The same for the tracing exporter, which also writes the graph to standard output when it fails: from C++, past
    `sys.stdout`."""
    # Standard error is not buffered: nothing is left to appear afterwards.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    error = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, quiet():
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(error, 2)
        os.close(error)
        torch._C._jit_set_onnx_log_output_stream("stdout")
