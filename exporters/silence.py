"""Exporters without their chatter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator


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
