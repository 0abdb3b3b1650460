"""ONNX files in half precision: half the bytes, the same inputs and outputs, and what cannot be says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from export_nets import EXAMPLE, Small, run
from torch import nn

import fxcat
from fxcat.errors import ExportError, InputError

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class Wide(nn.Module):
    """Enough weights to count; `maximum` and `topk` are computed in single precision, whatever is around them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.deep = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).relu()
        return torch.maximum(y, self.deep(y)).mean((2, 3)).topk(8)[0]


@pytest.mark.parametrize("opset", [None, 13])
def test_weights_are_halved_and_the_rest_stays(tmp_path: Path, opset: int | None) -> None:
    torch.manual_seed(0)
    model, path = Wide().eval(), tmp_path / "half.onnx"
    full = fxcat.export_onnx(model, tmp_path / "net.onnx", EXAMPLE, opset=opset)
    report = fxcat.export_onnx(model, path, EXAMPLE, opset=opset, half=True)
    assert report.opset == full.opset and report.bytes < 0.6 * full.bytes
    graph = onnx.load(str(path)).graph
    assert {w.data_type for w in graph.initializer if len(w.dims) > 1} == {FLOAT16}
    session = ort.InferenceSession(str(path))
    assert {v.type for v in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
    extra = {name: n - full.operators.get(name, 0) for name, n in report.operators.items()}
    assert {name for name, n in extra.items() if n} <= {"Cast"}
    x = torch.randn(3, 3, 16, 16)
    wanted = model(x).detach()
    error = float((run(path, x)[0] - wanted).abs().max() / wanted.abs().max())
    assert 0 < error < 5e-3
    assert report.max_error is not None and 1e-6 < report.max_error < 1e-2


def test_with_open_sizes_and_weights_beside_the_file(tmp_path: Path) -> None:
    model, path = Wide().eval(), tmp_path / "half.onnx"
    report = fxcat.export_onnx(model, path, EXAMPLE, dynamic_size=True, external_data=True, half=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.onnx", "half.onnx.data"]
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert ort.InferenceSession(str(path)).get_inputs()[0].shape == ["batch", 3, "height", "width"]
    x = torch.randn(2, 3, 19, 33)
    assert torch.allclose(run(path, x)[0], model(x), atol=5e-3)


def test_values_beyond_what_it_holds_are_told(tmp_path: Path) -> None:
    class Large(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.features(x * 1e6)) * 1e-6

    fxcat.export_onnx(Large(), tmp_path / "net.onnx", EXAMPLE)
    with pytest.raises(ExportError, match=r"65504.*without half=True"):
        fxcat.export_onnx(Large(), tmp_path / "half.onnx", EXAMPLE, half=True)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"module\.float\(\)"):
        fxcat.export_onnx(Small().double(), tmp_path / "net.onnx", EXAMPLE.double(), half=True)
    with pytest.raises(InputError, match="half="):
        fxcat.export_onnx(Small(), tmp_path / "net.onnx", EXAMPLE, half="yes")  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


def test_the_libraries_are_loaded_by_an_export_alone_and_quantisers_afterwards(tmp_path: Path) -> None:
    """Both come with ONNX Runtime, and one changes where Python looks for the other's modules."""
    code = (
        "import sys, fxcat\n"
        "assert not {'onnx', 'onnxscript', 'onnxruntime'} & sys.modules.keys()\n"
        "import torch; net = torch.nn.Linear(4, 2)\n"
        "fxcat.export_onnx(net, 'net.onnx', torch.zeros(1, 4), half=True)\n"
        "import onnxruntime.quantization\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
