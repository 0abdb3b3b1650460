"""ONNX export: what is written computes what the module computes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import zoo
from exactness import randomise
from export_nets import (
    EXAMPLE,
    Boxes,
    Dictionary,
    FixedBatch,
    OnValues,
    OtherAlone,
    Small,
    Structured,
    TwoInputs,
    close,
    run,
)
from torch import nn
from torchvision_nets import resnet, shufflenet

import fxcat
from fxcat.errors import ExportError, InputError
from fxcat.exporters import latency, onnx_file
from fxcat.exporters.latency import compare_latency, measure_latency
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.report import ExportReport


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(scope="module")
def report(small: Small, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_onnx(small, tmp_path_factory.mktemp("written") / "net.onnx", EXAMPLE)


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
def test_small_net_agrees(small: Small, report: ExportReport, batch: int) -> None:
    x = torch.randn(batch, 3, 16, 16)
    (found,) = run(report.path, x)
    assert close(found, small.eval()(x))


class Starred(Small):
    """Takes more than it is given, as every YOLO does."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(x)


def test_more_arguments_than_were_given(tmp_path: Path) -> None:
    net = fxcat.prepare(Starred(), EXAMPLE, verbose=False).eval()
    export_onnx(fxcat.finalize(net), tmp_path / "net.onnx", EXAMPLE)
    x = torch.randn(3, 3, 16, 16)
    (found,) = run(tmp_path / "net.onnx", x)
    assert close(found, net(x))


@pytest.mark.parametrize("make", [resnet, shufflenet])
def test_torchvision_agrees_without_leftovers(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    net = make()
    report = export_onnx(net, tmp_path / "net.onnx", torch.empty(1, 3, 64, 64, device="meta"))
    layers = Counter(type(m).__name__ for m in net.modules())
    assert report.operators["Conv"] == layers["Conv2d"]
    assert report.operators["Gemm"] == layers["Linear"]
    assert not {"Identity", "BatchNormalization", "Shape", "Gather", "Cast", "Dropout"} & set(report.operators)
    for batch in (1, 4):
        x = torch.randn(batch, 3, 64, 64)
        (found,) = run(tmp_path / "net.onnx", x)
        assert close(found, net.eval()(x))


def test_channels_last_pooling_leaves_no_index_arithmetic(tmp_path: Path) -> None:
    class Permuted(Small):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).permute(0, 2, 3, 1)
            x = nn.functional.layer_norm(x, (8,)).permute(0, 3, 1, 2)
            return torch.flatten(nn.functional.adaptive_avg_pool2d(x, (1, 1)), 1)

    report = export_onnx(Permuted(), tmp_path / "net.onnx", EXAMPLE)
    assert set(report.operators) <= {"Conv", "Transpose", "LayerNormalization", "ReduceMean", "Reshape", "Gemm"}


def test_report_is_true(report: ExportReport) -> None:
    path = report.path
    model = onnx.load(str(path))
    assert report.operators == dict(Counter(n.op_type for n in model.graph.node))
    assert report.operators == {"Add": 1, "Conv": 2, "Gemm": 1, "ReduceMean": 1, "Relu": 1, "Reshape": 1}
    assert report.bytes == path.stat().st_size
    assert report.opset == model.opset_import[0].version
    assert report.batches == (1, 4)
    assert report.max_error is not None and 0 <= report.max_error <= 1e-4
    assert report.provider == "CPUExecutionProvider"
    assert report.latency_ms is not None and report.latency_ms > 0
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_batch_is_dynamic_and_named(report: ExportReport) -> None:
    graph = onnx.load(str(report.path)).graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert sizes == [["batch", 3, 16, 16], ["batch", 5]]
    assert [v.name for v in (*graph.input, *graph.output)] == ["x", "output"]


def test_file_is_deterministic_and_holds_no_paths(tmp_path: Path, small: Small, report: ExportReport) -> None:
    again = export_onnx(small, tmp_path / "again.onnx", EXAMPLE, verify=False)
    assert again.path == tmp_path / "again.onnx"
    content = again.path.read_bytes()
    assert content == report.path.read_bytes()
    assert os.path.dirname(torch.__file__).encode() not in content
    assert os.path.basename(__file__).encode() not in content


def test_names_that_are_keywords(tmp_path: Path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.heads = nn.ModuleDict({"class": nn.Conv2d(8, 4, 1), "class_": nn.Conv2d(8, 4, 1)})

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.stem(x).relu()
            return {name: head(y) for name, head in self.heads.items()}

    report = export_onnx(Heads(), tmp_path / "heads.onnx", torch.randn(1, 3, 8, 8))
    assert report.operators["Conv"] == 3


def test_in_several_threads(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def export(name: str) -> None:
        try:
            fxcat.export_onnx(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), tmp_path / name, torch.zeros(1, 3, 4, 4))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=export, args=(f"{i}.onnx",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_without_verification(tmp_path: Path) -> None:
    report = export_onnx(OtherAlone(), tmp_path / "net.onnx", EXAMPLE, verify=False)
    assert (report.batches, report.max_error, report.provider, report.latency_ms) == ((), None, None, None)


def test_opset(tmp_path: Path) -> None:
    report = export_onnx(Small(), tmp_path / "net.onnx", EXAMPLE, opset=18)
    assert report.opset == 18 == onnx.load(str(tmp_path / "net.onnx")).opset_import[0].version


def test_dictionary_output(tmp_path: Path) -> None:
    net, path = Dictionary(), tmp_path / "net.onnx"
    export_onnx(net, path, EXAMPLE)
    assert [o.name for o in onnx.load(str(path)).graph.output] == ["out", "aux_0", "aux_1_0"]
    x = torch.randn(3, 3, 16, 16)
    wanted = net.eval()(x)
    out, aux, twice = run(path, x)
    assert close(out, wanted["out"]) and close(aux, wanted["aux"][0]) and close(twice, wanted["aux"][1][0])


def test_dataclass_output(tmp_path: Path) -> None:
    net, path = Structured(), tmp_path / "net.onnx"
    export_onnx(net, path, EXAMPLE)
    assert [o.name for o in onnx.load(str(path)).graph.output] == ["scores", "more_0", "more_1"]
    x = torch.randn(3, 3, 16, 16)
    assert isinstance(net.eval()(x), Boxes)
    assert close(run(path, x)[2], net(x).more[1])


def test_fixed_batch(tmp_path: Path) -> None:
    net, path = FixedBatch(), tmp_path / "net.onnx"
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        export_onnx(net, path, x)
    report = export_onnx(net, path, x, dynamic_batch=False)
    assert report.batches == (2,)
    assert report.max_error is not None and report.max_error <= 1e-4
    assert report.latency_ms is not None and report.latency_ms > 0
    graph = onnx.load(str(path)).graph
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
    assert sizes == [[2, 3, 16, 16], [2, 5]]
    assert close(run(path, x)[0], net.eval()(x))
    assert measure_latency(path, repeats=1) > 0 and measure_latency(path, x, repeats=1) > 0


def test_fixed_batch_of_one_that_forward_insists_on(tmp_path: Path) -> None:
    class Alone(Small):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x).view(1, 5)

    with pytest.raises(InputError, match="dynamic_batch=False"):
        export_onnx(Alone(), tmp_path / "net.onnx", EXAMPLE)
    assert export_onnx(Alone(), tmp_path / "net.onnx", EXAMPLE, dynamic_batch=False).batches == (1,)


def test_chunks_of_a_dynamic_batch(tmp_path: Path) -> None:
    class Pairs(Small):
        """Two images through one encoder, as RAFT has it."""

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            first, second = torch.cat([self.features(x), self.features(y)]).chunk(2)
            return self.fc(first * second.chunk(chunks=2, dim=1)[0].sum(1, keepdim=True))

    net, path = Pairs(), tmp_path / "net.onnx"
    assert export_onnx(net, path, (EXAMPLE, EXAMPLE)).batches == (1, 4)
    x, y = torch.randn(2, 3, 3, 16, 16)
    assert close(run(path, x, y)[0], net.eval()(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ["raft_small", "raft_large"])
def test_optical_flow(tmp_path: Path, name: str, dynamic: bool) -> None:
    net = zoo.build(name)
    randomise(net, 0)
    images = tuple(torch.rand(2, 2, 3, 128, 128))
    with torch.no_grad():
        # With random weights, each of the twelve updates would amplify what the one before was wrong by.
        net.update_block.flow_head.conv2.weight *= 0.1  # type: ignore[operator,union-attr]
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.train()(*images)
    report = export_onnx(net, tmp_path / "net.onnx", images, dynamic_batch=dynamic)
    assert report.batches == ((1, 4) if dynamic else (2,))
    assert report.max_error is not None and report.max_error <= 1e-4


def test_integer_inputs_stay_valid(tmp_path: Path) -> None:
    net, path = TwoInputs(), tmp_path / "net.onnx"
    rows = torch.tensor([2, 0, 1])
    export_onnx(net, path, (EXAMPLE.expand(3, -1, -1, -1), rows))
    x = torch.randn(3, 3, 16, 16)
    assert close(run(path, x, rows)[0], net.eval()(x, rows))


def test_module_and_random_state_are_untouched(tmp_path: Path) -> None:
    net = Small()
    net.norm.eval()
    net.branch.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags = {n: m.training for n, m in net.named_modules()}
    state = torch.get_rng_state()
    attributes = {n: set(vars(m)) for n, m in net.named_modules()}
    export_onnx(net, tmp_path / "net.onnx", EXAMPLE)
    assert torch.equal(state, torch.get_rng_state())
    assert flags == {n: m.training for n, m in net.named_modules()}
    assert attributes == {n: set(vars(m)) for n, m in net.named_modules()}
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["branch.weight"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(Dictionary(), tmp_path / "net.onnx", EXAMPLE)
    with pytest.raises(ExportError):
        export_onnx(OnValues(), tmp_path / "bad.onnx", EXAMPLE)
    assert capfd.readouterr() == ("", "")


def test_success_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"older")
    net = Small()
    export_onnx(net, path, EXAMPLE)
    assert close(run(path, EXAMPLE)[0], net.eval()(EXAMPLE))
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_finalized_network_has_the_operators_of_one_built_by_hand(tmp_path: Path) -> None:
    net = fxcat.prepare(Small(), EXAMPLE)
    for gate in net.gates.values():
        gate.theta.data[: len(gate.theta) // 2] = 0.0
    small = fxcat.finalize(net)
    report = export_onnx(small, tmp_path / "small.onnx", EXAMPLE)
    assert report.operators == export_onnx(Small(), tmp_path / "net.onnx", EXAMPLE).operators
    assert report.bytes < (tmp_path / "net.onnx").stat().st_size
    x = torch.randn(3, 3, 16, 16)
    assert close(run(tmp_path / "small.onnx", x)[0], net.eval()(x))


def test_large_weights_lie_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_external(program: Any, path: Path) -> None:
        program.save(path, external_data=True)

    monkeypatch.setattr(onnx_file, "_write", save_external)
    net, path = Small(), tmp_path / "net.onnx"
    report = export_onnx(net, path, EXAMPLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert close(run(path, EXAMPLE)[0], net.eval()(EXAMPLE))


def test_example_inputs_are_found(tmp_path: Path) -> None:
    net = Small()
    export_onnx(net, tmp_path / "net.onnx")
    graph = onnx.load(str(tmp_path / "net.onnx")).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim][1:] == [3, 224, 224]
    linear = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    assert export_onnx(linear, tmp_path / "linear.onnx").operators == {"Gemm": 2, "Relu": 1}


def test_latency_side_by_side(tmp_path: Path) -> None:
    narrow, wide = tmp_path / "narrow.onnx", tmp_path / "wide.onnx"
    for path, width in ((narrow, 8), (wide, 1024)):
        net = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width))
        export_onnx(net, path, torch.empty(1, 16), verify=False)
    fast, slow = compare_latency(narrow, wide, batch=64, repeats=9)
    assert 0 < fast < slow
    assert measure_latency(narrow, torch.empty(1, 16), repeats=1) > 0
    with pytest.raises(InputError):
        latency.measure_latency(narrow, repeats=0)
