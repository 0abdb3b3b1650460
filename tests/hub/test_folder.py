"""The hub folder: another process loads it, it holds no figure that nobody measured, and nothing runs unasked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_nets import residual

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = torch.zeros(1, 3, 32, 32)
RESNET = fxcat.Architecture("torchvision:resnet18", classes=4)


def pruned(model: torch.nn.Module, example: torch.Tensor = EXAMPLE) -> tuple[torch.nn.Module, fxcat.Report]:
    net = fxcat.prepare(model, example, verbose=False)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.3))
    return fxcat.finalize(net).eval(), fxcat.Report.of(net, command="fxcat prune resnet18")


@pytest.fixture(scope="module")
def small() -> tuple[torch.nn.Module, fxcat.Report]:
    torch.manual_seed(0)
    return pruned(fxcat.named_model("resnet18", classes=4))


@pytest.fixture(scope="module")
def folder(small: tuple[torch.nn.Module, fxcat.Report], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "small"
    results = {"accuracy on what | I have": "76.1 %"}
    fxcat.save_folder(small[0], path, architecture=RESNET, report=small[1], results=results, license="apache-2.0")
    return path


def test_another_process_loads_it(folder: Path, small: tuple[torch.nn.Module, fxcat.Report], tmp_path: Path) -> None:
    x = torch.rand(2, 3, 32, 32)
    torch.save({"x": x, "y": small[0](x)}, tmp_path / "pair.pt")
    code = (
        "import sys, torch, fxcat\n"
        "pair = torch.load(sys.argv[2])\n"
        "net = fxcat.load_folder(sys.argv[1])\n"
        "assert not net.training and torch.equal(net(pair['x']), pair['y'])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "pair.pt"], check=True)


def test_the_card_has_the_figures_that_were_measured_and_no_others(
    folder: Path, small: tuple[torch.nn.Module, fxcat.Report]
) -> None:
    network, report = small
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: fxcat\n") and 'license: "apache-2.0"' in card
    assert r"| accuracy on what \| I have | 76.1 % |" in card
    params = sum(p.numel() for p in network.parameters())
    figures = set(re.findall(r"\d[\d,]{4,}", card))
    known = (params, report.start.params, report.left.macs, report.start.macs)
    assert figures == {f"{n:,}" for n in known}
    shares = {f"{report.left.macs / report.start.macs:.1%}", f"{params / report.start.params:.1%}"}
    assert set(re.findall(r"[\d.]+%", card)) == shares
    fxcat.save_folder(network, folder.parent / "bare", source=False)
    bare = (folder.parent / "bare" / "README.md").read_text(encoding="utf-8")
    assert "Measured" not in bare and "%" not in bare and "load_folder(folder, model)" in bare


def test_with_onnx(tmp_path: Path) -> None:
    network, _ = pruned(residual(), torch.zeros(1, 1, 8, 8))
    fxcat.save_folder(network, tmp_path, input_shape=(1, 1, 8, 8), onnx=True)
    import onnxruntime as ort

    x = torch.rand(3, 1, 8, 8)
    session: Any = ort.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-4, atol=1e-5)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "size of model.onnx" in card and "largest difference of model.onnx" in card
    assert isinstance(fxcat.load_folder(tmp_path, residual()), torch.nn.Sequential)
    fxcat.save_folder(network, tmp_path)
    assert not (tmp_path / "model.onnx").exists(), "of the network before"


def test_code_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    network, _ = pruned(residual(width=8), torch.zeros(1, 1, 8, 8))
    made = fxcat.Architecture("command_nets:residual", arguments={"width": 8})
    fxcat.save_folder(network, tmp_path, architecture=made)
    with pytest.raises(fxcat.InputError, match="made by command_nets:residual"):
        fxcat.load_folder(tmp_path)
    x = torch.rand(1, 1, 8, 8)
    for loaded in (fxcat.load_folder(tmp_path, trust_source=True), fxcat.load_folder(tmp_path, residual(8))):
        assert torch.equal(loaded(x), network(x))


NETS = """
import torch


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.Conv2d(width, width, 3, padding=1)
        self.head = torch.nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        return self.head(x.mean((2, 3)))
"""
LOADING = """
import importlib.util, sys
import torch

sys.modules["timm"] = None  # as if it were not installed
assert importlib.util.find_spec("their_nets") is None
import fxcat

for folder in sys.argv[1:]:
    pair = torch.load(folder + ".pt")
    try:
        fxcat.load_folder(folder)
    except fxcat.InputError as error:
        assert "trust_source=True" in str(error) and "network.py" in str(error), error
    else:
        raise AssertionError(f"nothing was trusted in {folder}")
    net = fxcat.load_folder(folder, trust_source=True)
    assert not net.training and torch.equal(net(pair["x"]), pair["y"]), folder
    net = fxcat.prepare(net.train(), pair["x"], verbose=False)  # it can become smaller again
    assert net.start_cost.params == fxcat.Report.of(net).left.params, folder
"""


def their_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.nn.Module, fxcat.Architecture]:
    (tmp_path / "theirs").mkdir(exist_ok=True)
    (tmp_path / "theirs" / "their_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path / "theirs"))
    made = fxcat.Architecture("their_nets:Net", arguments={"width": 12})
    return fxcat.named_model(made.name, arguments=made.arguments), made


def saved(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a network whose class another process does not have; what it computes lies beside it."""
    torch.manual_seed(0)
    if kind == "timm":
        made = fxcat.Architecture("timm:test_resnet", classes=4)
        model, example = fxcat.named_model(made.name, classes=4), torch.zeros(1, 3, 32, 32)
    else:
        model, made = their_net(folder, monkeypatch)
        example = torch.zeros(1, 1, 8, 8)
    small, _ = pruned(model, example)
    fxcat.save_folder(small, folder / kind, architecture=None if kind == "not said" else made)
    x = torch.rand(3, *example.shape[1:])
    torch.save({"x": x, "y": small(x)}, folder / f"{kind}.pt")
    monkeypatch.delitem(sys.modules, "their_nets", raising=False)
    return folder / kind


def test_a_process_without_the_classes_loads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [saved(kind, tmp_path, monkeypatch) for kind in ("module of somebody", "timm", "not said")]
    subprocess.run([sys.executable, "-c", LOADING, *folders], check=True, cwd=tmp_path)
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "largest difference of network.py from the network | 0.0e+00" in card, folder


def test_the_code_of_the_card_runs(folder: Path, small: tuple[torch.nn.Module, fxcat.Report]) -> None:
    x = torch.rand(2, 3, 32, 32)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {"folder": str(folder)}
        exec(block, names)
        assert torch.equal(names["network"](x), small[0](x))


def test_nothing_is_executed_unless_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\n"
    (other / "network.py").write_text(code + (other / "network.py").read_text())
    fxcat.load_folder(other)
    fxcat.load_folder(other, fxcat.named_model("resnet18", classes=4))
    assert not mark.exists()
    fxcat.load_folder(other, trust_source=True)
    assert mark.exists()


def test_networks_without_a_source_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network, _ = pruned(residual(), torch.zeros(1, 1, 8, 8))

    def none(*_: Any) -> None:
        raise fxcat.ExportError("an op has none", where="layer")

    monkeypatch.setattr("fxcat.hub.folder.export_source", none)
    with pytest.raises(fxcat.ExportError, match="source=False"):
        fxcat.save_folder(network, tmp_path)
    fxcat.save_folder(network, tmp_path, source=False)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "network.py" not in (tmp_path / "README.md").read_text()


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """A copy whose description says something else."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**content, **values}))
    return to


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"kind": "fxcat-folder-2"}, fxcat.StorageError, "does not know"),
        ({"more": 1}, fxcat.StorageError, "'more' in config.json is not known"),
        ({"params": "many"}, fxcat.StorageError, "config.json.params"),
        ({"params": 17}, fxcat.StorageError, "describes a network with 17 parameters"),
        ({"input_shape": [1, -3, 8, 8]}, fxcat.StorageError, "input_shape"),
        ({"architecture": {"name": "resnet18", "bypasses": "yes"}}, fxcat.StorageError, "bypasses"),
        ({"architecture": {"name": "resnet18", "classes": 10**9}}, fxcat.StorageError, "classes"),
        ({"architecture": ["resnet18"]}, fxcat.StorageError, "architecture"),
        ({"architecture": {"name": "resnet34", "classes": 4}}, fxcat.InputError, "another model"),
        ({"architecture": {"name": "timm:hf-hub:a/b"}}, fxcat.InputError, "made by timm:hf-hub"),
        ({"architecture": {"name": "resnet18", "arguments": {"weights": "DEFAULT"}}}, fxcat.InputError, "load weights"),
        (
            {"architecture": {"name": "timm:resnet18", "arguments": {"pretrained": True}}},
            fxcat.InputError,
            "load weights",
        ),
        ({"architecture": None}, fxcat.InputError, "does not say"),
    ],
)
def test_folders_that_are_refused(
    values: dict[str, Any], kind: type[fxcat.FxcatError], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        fxcat.load_folder(changed(folder, tmp_path / "other", **values))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise OSError('gone')", "OSError: gone"),
        ("x = 1", "AttributeError"),
        ("def load(path): return 3", "makes a int"),
        ("def load(path:", "SyntaxError"),
    ],
)
def test_source_that_does_not_run(code: str, said: str, folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    (other / "network.py").write_text(code)
    with pytest.raises(fxcat.StorageError, match=said):
        fxcat.load_folder(other, trust_source=True)


def test_damaged_weights_of_the_source(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    content = bytearray((other / "network.safetensors").read_bytes())
    content[-5] ^= 1
    (other / "network.safetensors").write_bytes(content)
    with pytest.raises(fxcat.StorageError, match="damaged"):
        fxcat.load_folder(other, trust_source=True)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"kind": []}', "[" * 100_000])
def test_what_is_no_description(text: str, folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other")
    (other / "config.json").write_text(text)
    with pytest.raises(fxcat.StorageError):
        fxcat.load_folder(other)


def test_mistakes(small: tuple[torch.nn.Module, fxcat.Report], tmp_path: Path) -> None:
    network, report = small
    other, _ = pruned(residual(), torch.zeros(1, 1, 8, 8))
    for wrong in ("resnet18", "hub_nets:missing", fxcat.Architecture("resnet18", arguments={"width": 3})):
        with pytest.raises(fxcat.InputError, match="was not made from architecture="):
            fxcat.save_folder(network, tmp_path / "a", architecture=wrong)
    with pytest.raises(fxcat.InputError, match="the report is of a network with"):
        fxcat.save_folder(other, tmp_path / "a", report=report)
    fxcat.save_folder(other, tmp_path / "b")
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    with pytest.raises(fxcat.InputError, match="finalize"):
        fxcat.save_folder(residual(), tmp_path / "b")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    with pytest.raises(fxcat.StorageError, match="no folder of save_folder"):
        fxcat.load_folder(tmp_path / "a")


def test_the_shape_that_it_was_prepared_with(small: tuple[torch.nn.Module, fxcat.Report], tmp_path: Path) -> None:
    network, _ = small
    fxcat.save_folder(network, tmp_path / "a", source=False)
    described = json.loads((tmp_path / "a" / "config.json").read_text())
    assert described["input_shape"] == [1, *described["input_shape"][1:]] and len(described["input_shape"]) == 4
