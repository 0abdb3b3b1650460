"""ONNX export of models that take a list of images: what is written computes what the module computes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import detectors
import onnx
import onnxruntime as ort
import pytest
import torch
from detectors import SIZES, images
from exactness import random_gates, randomise
from export_nets import close
from torch import nn
from zoo import DETECTION

import fxcat
from fxcat.errors import ExportError, InputError
from fxcat.exporters import verify
from fxcat.exporters.latency import measure_latency
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.report import ExportReport

FAST = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZE = (96, 128)


def example(name: str, count: int = 1) -> list[torch.Tensor]:
    """Images; in the size at which a detector works if that is fixed: where it resizes, coordinates in single precision
    alone change scores of random weights by 1e-4."""
    size = (SIZES[name], SIZES[name]) if name in SIZES else SIZE
    return images((size,) * count, torch.float32)


def detector(name: str) -> nn.Module:
    """With random weights and statistics that fit them."""
    model = detectors.build(name)
    randomise(model, 0)
    detectors.calibrate(model, (example(name, 2),))
    if "rcnn" not in name:
        # among hundreds of detections, rounding decides on the order of some
        model.detections_per_img = 20  # pyright: ignore[reportArgumentType]
    return model.eval()


def pruned(name: str) -> nn.Module:
    net = fxcat.prepare(detector(name), (example(name),), verbose=False)
    random_gates(net, 0)
    return fxcat.finalize(net).eval()


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return pruned(FAST)


@pytest.fixture(scope="module")
def report(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_onnx(small, tmp_path_factory.mktemp("written") / "small.onnx", (example(FAST),))


class Counting(nn.Module):
    """As many results as there are bright pixels, from a list of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: list[torch.Tensor], scale: float = 2.0) -> Any:
        return [self.found(self.conv(image[None])[0].sum(0) * scale) for image in images]

    def found(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": values[values > 0], "total": values.sum()}


class Branching(Counting):
    """The branch depends on values: tracing keeps the side that it sees."""

    def found(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": values if values[0, 0] > values[0, 1] else values * 2}


class Foreign(Counting):
    def found(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": torch.linalg.eigvals(values).real}


def run(path: Path, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of a file by name, by a session that is not fxcat's."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [o.name for o in session.get_outputs()]
    return {n: torch.from_numpy(v) for n, v in zip(names, session.run(None, feed), strict=True)}


def test_pruned_detector_agrees(small: nn.Module, report: ExportReport) -> None:
    path = report.path
    assert report.batches == (1,)
    assert report.max_error is not None and report.max_error <= 1e-4
    assert report.latency_ms is not None and report.latency_ms > 0
    assert report.bytes == path.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == ["small.onnx"]
    graph = onnx.load(str(path)).graph
    assert [v.name for v in graph.input] == ["images"]
    assert [v.name for v in graph.output] == ["boxes", "labels", "scores"]
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [3, *SIZE]
    picture = [torch.rand(3, *SIZE)]
    with torch.no_grad():
        wanted = small(picture)[0]
    found = run(path, picture)
    assert len(wanted["boxes"])
    assert all(close(found[key], wanted[key]) for key in wanted)
    assert measure_latency(path, repeats=1) > 0


def test_several_images_and_constants(tmp_path: Path) -> None:
    net, path = Counting(), tmp_path / "net.onnx"
    sizes = (torch.rand(3, 8, 8), torch.empty(3, 9, 12, device="meta"))
    report = export_onnx(net, path, (list(sizes), 3.0))
    assert report.batches == (2,)
    pictures = [torch.rand(x.shape) for x in sizes]
    found = run(path, pictures)
    assert list(found) == ["values_0", "total_0", "values_1", "total_1"]
    assert [i.name for i in onnx.load(str(path)).graph.input] == ["images_0", "images_1"]
    with torch.no_grad():
        for number, wanted in enumerate(net(pictures, 3.0)):
            assert all(close(found[f"{key}_{number}"], wanted[key]) for key in wanted)


def test_example_images_are_found(tmp_path: Path) -> None:
    export_onnx(Counting(), tmp_path / "net.onnx")
    (entry,) = onnx.load(str(tmp_path / "net.onnx")).graph.input
    assert [d.dim_value for d in entry.type.tensor_type.shape.dim] == [3, 224, 224]


def test_lists_of_batches_stay_dynamic(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
            return features[0] + features[1]

    report = export_onnx(Sum(), tmp_path / "net.onnx", ([torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)],))
    assert report.batches == (1, 4)


@pytest.mark.parametrize(
    ("net", "message"),
    [(Branching, "differs from the module"), (Foreign, r"cannot trace Foreign.*linalg_eigvals")],
)
@pytest.mark.parametrize("older", [False, True])
def test_failure_leaves_no_file(tmp_path: Path, net: type[nn.Module], message: str, older: bool) -> None:
    path = tmp_path / "net.onnx"
    if older:
        path.write_bytes(b"older")
    with pytest.raises(ExportError, match=message) as caught:
        export_onnx(net(), path, ([torch.rand(3, 8, 8)],))
    assert caught.value.remedy
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([b"older"] if older else [])


def test_bad_inputs(tmp_path: Path) -> None:
    for inputs, message in [
        ([torch.rand(4, 8, 8)], "fails on example inputs"),
        ([torch.rand(3, 8, 8), torch.rand(8)], "not one common batch"),
        ([torch.rand(3, 8, 8).bfloat16()], "bfloat16"),
    ]:
        with pytest.raises(InputError, match=message):
            export_onnx(Counting(), tmp_path / "net.onnx", (inputs,))
    with pytest.raises(ExportError, match="opset 23"):
        export_onnx(Counting(), tmp_path / "net.onnx", ([torch.rand(3, 8, 8)],), opset=23)
    assert not list(tmp_path.iterdir())


def test_opset(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert export_onnx(Counting(), path, ([torch.rand(3, 8, 8)],), opset=17).opset == 17
    assert onnx.load(str(path)).opset_import[0].version == 17


def test_another_number_of_detections_is_noticed(tmp_path: Path) -> None:
    net, path, pictures = Counting(), tmp_path / "net.onnx", [torch.rand(3, 8, 8)]
    export_onnx(net, path, (pictures,), verify=False)
    with torch.no_grad():
        net.conv.bias += 1.0  # type: ignore[operator]
    with pytest.raises(ExportError, match=r"shape .*the module torch.float32 of shape"):
        verify.compare_outputs(path, net.eval(), [(pictures,)], "CPUExecutionProvider")


def test_detector_file_is_deterministic_and_the_rest_untouched(
    tmp_path: Path, small: nn.Module, report: ExportReport, capfd: pytest.CaptureFixture[str]
) -> None:
    net = copy.deepcopy(small).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    attributes = {n: set(vars(m)) for n, m in net.named_modules()}
    state = torch.get_rng_state()
    export_onnx(net, tmp_path / "net.onnx", (example(FAST),), verify=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    assert attributes == {n: set(vars(m)) for n, m in net.named_modules()}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    content = (tmp_path / "net.onnx").read_bytes()
    assert content == report.path.read_bytes()
    for word in (os.path.dirname(torch.__file__), os.path.dirname(__file__), str(tmp_path), "fxcat"):
        assert word.encode() not in content
    assert capfd.readouterr() == ("", "")


def test_a_failure_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="cannot trace"):
        export_onnx(Foreign(), tmp_path / "bad.onnx", ([torch.rand(3, 8, 8)],))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTION)
def test_every_pruned_detector_agrees(tmp_path: Path, name: str) -> None:
    net = pruned(name)
    pictures = example(name)
    assert len(net(pictures)[0]["boxes"])
    report = export_onnx(net, tmp_path / "net.onnx", (pictures,))
    assert report.batches == (1,)
    assert report.max_error is not None and report.max_error <= 1e-4


@pytest.mark.slow
def test_two_images(tmp_path: Path, small: nn.Module) -> None:
    report = export_onnx(small, tmp_path / "net.onnx", (images((SIZE, (112, 100)), torch.float32),))
    assert report.batches == (2,)
    assert [o.name for o in onnx.load(str(tmp_path / "net.onnx")).graph.output][3:] == [
        "boxes_1",
        "labels_1",
        "scores_1",
    ]
