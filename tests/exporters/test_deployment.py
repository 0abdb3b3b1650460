"""After pruning: what other people's tools make of a small network, and of its ONNX file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import openvino
import pytest
import torch
from deployment_net import SIZE, images, pruned, train
from exactness import randomise
from export_nets import run, runner
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torchvision.models import VisionTransformer, get_model
from torchvision_nets import shufflenet

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return pruned()


@pytest.fixture(scope="module")
def file(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "small.onnx"
    fxcat.export_onnx(small, path)
    return path


def error(found: torch.Tensor, small: nn.Module, x: torch.Tensor) -> float:
    """The largest difference, relative to the largest output."""
    with torch.no_grad():
        wanted = small(x)
    return float((found.detach() - wanted).abs().max() / wanted.abs().max())


def accuracy(network: Callable[[torch.Tensor], torch.Tensor]) -> float:
    x, y = images(32, 1000)
    found = torch.cat([network(image[None]) for image in x])
    return float((found.argmax(1) == y).float().mean())


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(images(32, 500)[0])

    def get_next(self) -> Any:
        image = next(self.left, None)
        return None if image is None else {"x": image[None].numpy()}


def test_static_int8_in_onnx_runtime(tmp_path: Path, small: nn.Module, file: Path) -> None:
    merged, path = tmp_path / "merged.onnx", tmp_path / "int8.onnx"
    quant_pre_process(str(file), str(merged))
    quantize_static(str(merged), str(path), Reader(), per_channel=True, reduce_range=True)
    graph = onnx.load(str(path)).graph
    stored = {w.data_type for w in graph.initializer if len(w.dims) == 4}
    assert stored == {onnx.TensorProto.INT8}
    x = images(16, 7)[0]
    assert error(run(path, x)[0], small, x) < 0.05
    int8 = runner(path)
    assert accuracy(lambda image: int8(image)[0]) >= accuracy(small) - 0.05


def test_openvino_computes_the_same_file(small: nn.Module, file: Path) -> None:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled: Any = core.compile_model(core.read_model(str(file)), "CPU", settings)
    x = images(5, 7)[0]
    assert error(torch.from_numpy(np.array(compiled([x.numpy()])[0])), small, x) < 1e-5


def test_exported_programs_are_saved_and_loaded(tmp_path: Path, small: nn.Module) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(small, (images(2, 0)[0],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "small.pt2")
    x = images(5, 7)[0]
    assert error(torch.export.load(tmp_path / "small.pt2").module()(x), small, x) < 1e-6


@pytest.mark.long
def test_int8_after_training_and_in_training(small: nn.Module) -> None:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    def quantizer(training: bool) -> Any:
        return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=training))

    example = images(16, 0)[0]
    observed = prepare_pt2e(torch.export.export(small, (example,), strict=True).module(), quantizer(False))
    observed(example)
    x = images(16, 7)[0]
    assert error(convert_pt2e(observed)(x), small, x) < 0.05

    captured = torch.export.export(copy.deepcopy(small).train(), (example,), strict=True).module()
    rounding = prepare_qat_pt2e(captured, quantizer(True))
    losses = train(rounding, 20, 2e-3)
    assert sum(losses[-5:]) < sum(losses[:5])
    rounding = move_exported_model_to_eval(rounding)
    assert error(convert_pt2e(copy.deepcopy(rounding))(x), rounding, x) < 0.05


LONG = pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["mixed", "vision transformer", "shufflenet", LONG])
def test_simplifiers_find_nothing_more(tmp_path: Path, small: nn.Module, name: str) -> None:
    path = tmp_path / "net.onnx"
    fxcat.export_onnx(small if name == "mixed" else halved(name), path, verify=False)
    model = onnx.load(str(path))
    slimmed: Any = onnxslim.slim(str(path))
    assert Counter(n.op_type for n in slimmed.graph.node) == Counter(n.op_type for n in model.graph.node)


def halved(name: str) -> nn.Module:
    """With random weights: what is zero at the start could be simplified away."""
    if name == "vision transformer":
        model: nn.Module = VisionTransformer(
            image_size=SIZE, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=4
        )
    else:
        model = shufflenet() if name == "shufflenet" else get_model(name, weights=None, num_classes=4)
    size = SIZE if name == "vision transformer" else 64
    randomise(model, 0)
    net = fxcat.prepare(model, torch.randn(1, 3, size, size), verbose=False)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.5))
    return fxcat.finalize(net)
