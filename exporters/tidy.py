"""The last touch to an ONNX file: precision, what quantisers stumble over goes, sizes have names, weights lie inside or
beside.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx

from fxcat.errors import ExportError
from fxcat.exporters.form import Form
from fxcat.exporters.half import in_half

_LARGEST = 2**31 - 1
"""Bytes of a file without weights beside it."""


def finish(path: Path, form: Form) -> None:
    """Rewrite a file in place, as its form says. Raises `ExportError` for one that cannot be."""
    external = form.external_data
    size = sum(f.stat().st_size for f in path.parent.iterdir()) // (2 if form.half else 1)
    if external is None and form.half:
        external = size > _LARGEST
    if external is False and size > _LARGEST:
        raise ExportError("a file of more than 2 GB needs its weights beside it", remedy="leave external_data= out")
    model = in_half(path) if form.half else onnx.load(str(path), load_external_data=external is not None)
    _drop_shapes_of_weights(model)
    if form.dynamic_size:
        _name_sizes(model)
    data = path.with_name(f"{path.name}.data")
    if external is not None:
        data.unlink(missing_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=external is True, location=data.name)


def _name_sizes(model: onnx.ModelProto) -> None:
    """Heights and widths of images are called so, wherever a shape says something of them."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        shape = value.type.tensor_type.shape.dim
        for axis, name in ((2, "height"), (3, "width")) if len(shape) == 4 else ():
            known = shape[axis].dim_param
            if known and known not in names:
                taken = sum(n.startswith(name) for n in names.values())
                names[known] = f"{name}_{taken}" if taken else name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param)


def _drop_shapes_of_weights(model: onnx.ModelProto) -> None:
    """A weight has a shape of its own: ONNX Runtime's quantisers take a second one for that of another value."""
    weights = {w.name for w in model.graph.initializer}
    kept = [v for v in model.graph.value_info if v.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
