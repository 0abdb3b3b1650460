"""An ONNX file in half precision: weights and arithmetic in float16, inputs and outputs as they were.

The conversion is that of ONNX Runtime, which knows the ops that have no such form and puts casts around them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxscript import ir

from fxcat.errors import InputError

_WIDE = (onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def in_half(path: Path) -> onnx.ModelProto:
    """What a file holds, in half precision. Raises `InputError` if its weights are neither in single precision nor in
    half: they would stay as they are."""
    weights = onnx.load(str(path), load_external_data=False).graph.initializer
    wide = next((w.name for w in weights if w.data_type in _WIDE), None)
    if wide is not None:
        raise InputError("half=True takes weights in float32", where=wide, remedy="export module.float()")
    # here, not above: its package appends a folder to `sys.path`, which its other modules rely on from then on
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # given the path, and not a model, it finds the shapes of networks of more than 2 GB too
    converted = ir.from_proto(convert_float_to_float16(str(path), keep_io_types=True))
    converted.graph.sort()  # its casts are the last nodes
    return ir.to_proto(converted)
