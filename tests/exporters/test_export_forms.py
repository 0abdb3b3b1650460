"""ONNX files in the forms that people ask for: sizes, names, opsets, weights beside them, quantised."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from artificial_latency import with_latency
from export_nets import EXAMPLE, Small, TwoInputs, close, run
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

import fxcat
from fxcat.errors import ExportError, InputError


class Stem(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


def pruned(example: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = fxcat.prepare(Stem(), example, verbose=False)
    net.gates["conv1"].theta[::2] = 0.0
    return fxcat.finalize(net)


def shape_of_input(path: Path) -> list[Any]:
    return ort.InferenceSession(str(path)).get_inputs()[0].shape


def test_the_example_is_the_one_that_was_prepared(tmp_path: Path) -> None:
    fxcat.export_onnx(pruned(torch.zeros(2, 3, 40, 56)), tmp_path / "net.onnx")
    assert shape_of_input(tmp_path / "net.onnx")[1:] == [3, 40, 56]


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_dynamic_sizes(tmp_path: Path, dynamic_batch: bool) -> None:
    small, path = pruned(torch.zeros(2, 3, 40, 56)), tmp_path / "net.onnx"
    fxcat.export_onnx(small, path, dynamic_size=True, dynamic_batch=dynamic_batch)
    assert shape_of_input(path) == ["batch" if dynamic_batch else 2, 3, "height", "width"]
    x = torch.randn(5 if dynamic_batch else 2, 3, 57, 33)
    assert close(run(path, x)[0], small.eval()(x))


def test_a_size_that_is_fixed_in_the_module_is_told(tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 2))
    with pytest.raises(ExportError, match="dynamic_size=False"):
        fxcat.export_onnx(fixed, tmp_path / "net.onnx", torch.zeros(1, 3, 8, 8), dynamic_size=True)
    assert not list(tmp_path.iterdir())


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    fxcat.export_onnx(Small(), path, EXAMPLE, input_names=["pixels"], output_names=["logits"])
    session = ort.InferenceSession(str(path))
    assert [i.name for i in session.get_inputs()] == ["pixels"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    with pytest.raises(InputError, match="input_names= has 2 names, and there are 1"):
        fxcat.export_onnx(Small(), path, EXAMPLE, input_names=["a", "b"])
    with pytest.raises(InputError, match="output_names= names something twice"):
        fxcat.export_onnx(TwoInputs(), path, output_names=["a", "a"])
    with pytest.raises(InputError, match="is one string"):
        fxcat.export_onnx(Small(), path, EXAMPLE, input_names="pixels")


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20])
def test_opsets(tmp_path: Path, opset: int) -> None:
    report = fxcat.export_onnx(pruned(EXAMPLE), tmp_path / "net.onnx", opset=opset)
    assert report.opset == opset
    assert report.max_error is not None and report.max_error < 1e-5


def test_weights_beside_the_file(tmp_path: Path) -> None:
    small = pruned(EXAMPLE)
    report = fxcat.export_onnx(small, tmp_path / "net.onnx", external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert close(run(tmp_path / "net.onnx", EXAMPLE)[0], small.eval()(EXAMPLE))


@pytest.mark.parametrize("opset", [None, 13])
def test_quantisers_take_the_file(tmp_path: Path, opset: int | None) -> None:
    small = pruned(torch.zeros(1, 3, 32, 32))
    fxcat.export_onnx(small, tmp_path / "net.onnx", opset=opset)
    model = onnx.load(str(tmp_path / "net.onnx"))
    weights = {w.name for w in model.graph.initializer}
    assert weights.isdisjoint(v.name for v in model.graph.value_info)
    quantize_dynamic(str(tmp_path / "net.onnx"), str(tmp_path / "int8.onnx"), weight_type=QuantType.QUInt8)
    x = torch.randn(2, 3, 32, 32)
    found = run(tmp_path / "int8.onnx", x)[0]
    assert float((found - small.eval()(x)).detach().abs().max()) < 0.1


def test_the_report_tells_what_the_table_says(tmp_path: Path) -> None:
    net = with_latency(fxcat.prepare(Stem(), EXAMPLE, verbose=False), step=2)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(latency=0.6))
    report = fxcat.export_onnx(copy.deepcopy(fxcat.finalize(net)), tmp_path / "net.onnx", verify=False)
    assert report.predicted_latency_ms == pytest.approx(net.expected_latency().item())
    assert report.predicted_for == "torch, cpu, 1 thread, batch 1"


def test_latency_beside_that_of_another_module(tmp_path: Path) -> None:
    report = fxcat.export_onnx(pruned(EXAMPLE), tmp_path / "net.onnx", compare=Stem())
    assert report.predicted_latency_ms is report.predicted_for is None
    assert report.latency_ms is not None and report.compared_latency_ms is not None
    assert report.latency_ms > 0 < report.compared_latency_ms
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(InputError, match="still has gates"):
        fxcat.export_onnx(Stem(), tmp_path / "net.onnx", EXAMPLE, compare=fxcat.prepare(Stem(), EXAMPLE, verbose=False))


class Caching(Stem):
    """Keeps a map of positions for the last size that it has seen, as heads of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.size: tuple[int, int] | None = None
        self.map = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2], x.shape[3]
        if size != self.size:
            self.size = size
            self.map = torch.arange(x.shape[3], dtype=x.dtype, device=x.device).expand(x.shape[2], -1) / x.shape[3]
        return super().forward(x * self.map)


def test_what_a_module_keeps_of_a_size_is_not_in_the_file(tmp_path: Path) -> None:
    model, path = Caching().eval(), tmp_path / "net.onnx"
    example = torch.zeros(2, 3, 40, 56)
    model(example)
    model.size = None  # what it keeps is of another time, as after a run at another size
    kept = model.map
    fxcat.export_onnx(model, path, example, dynamic_size=True)
    assert model.map is kept and model.size is None
    x = torch.randn(3, 3, 41, 33)
    assert close(run(path, x)[0], model(x))
