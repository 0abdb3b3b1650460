"""ONNX Runtime: which provider, a session, and what it is fed."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.inputs import tensor_leaves

_log = logging.getLogger(__name__)
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


def provider_for(module: nn.Module) -> str:
    """CUDA if ONNX Runtime has it and the module is there, else CPU."""
    on_gpu = any(p.is_cuda for p in module.parameters())
    return CUDA if on_gpu and CUDA in ort.get_available_providers() else CPU


def open_session(path: str | os.PathLike[str], provider: str, *, exact: bool = False) -> Any:
    """A session that logs errors only. `exact`: full float32, where CUDA would otherwise round to TF32."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Two sessions that take turns must not spin on each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings = {"use_tf32": "0"} if exact and provider == CUDA else {}
    try:
        session: Any = ort.InferenceSession(os.fspath(path), options, providers=[(provider, settings)])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot load the file: {error}",
            where=os.fspath(path),
            remedy="export module.float(): it has few operators in other types; or give another opset",
        ) from error
    used = session.get_providers()[0]
    if used != provider:
        _log.warning("ONNX Runtime cannot use %s here and runs on %s", provider, used)
    return session


def feed(session: Any, arguments: tuple[Any, ...]) -> dict[str, NDArray[np.generic]]:
    """What to give a session: its inputs are the tensors of the arguments, in order."""
    names = [i.name for i in session.get_inputs()]
    tensors = tensor_leaves(arguments)
    if len(names) != len(tensors):
        raise ExportError(
            f"the file has {len(names)} inputs ({', '.join(names)}), but {len(tensors)} tensors are given"
        )
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
