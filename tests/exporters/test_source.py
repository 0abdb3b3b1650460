"""Networks as source: what the files compute, that they need torch alone, and what cannot be written."""

from __future__ import annotations

import importlib.util
import io
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from exactness import random_gates, randomise
from torch import nn

import fxcat
from fxcat import rules

M: Any = torchvision.models


class Attention(nn.Module):
    """Heads of a size that Python computes; a bias that is looked up."""

    index: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 2
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.arange(25).remainder(9), persistent=False)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(5, 5, 2).permute(2, 0, 1)
        x = torch.softmax(q @ k.transpose(-1, -2) * scale + bias, -1) @ v
        return self.out(x.transpose(1, 2).reshape(batch, count, -1))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.mlp = nn.ModuleDict({"in": nn.Linear(width, 2 * width), "out": nn.Linear(2 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x), scale=0.5)
        return x + self.mlp["out"](nn.functional.gelu(self.mlp["in"](x)))


class Tokens(nn.Module):
    """Tied weights, frozen ones, layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 8)
        self.layers = nn.ModuleList([Layer(8), Layer(8), Layer(8)])
        self.other = nn.Linear(4, 8)
        self.other.weight = self.enter.weight
        self.head = nn.Linear(8, 3)
        self.head.bias.requires_grad_(False)
        self.layers[1].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.other(x)
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x)
        return self.head((x + y).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: M.ResNet(M.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5), (2, 3, 32, 32)),
    "shufflenet": (lambda: M.ShuffleNetV2([2, 1, 1], [8, 16, 32, 64, 64], num_classes=5), (2, 3, 32, 32)),
    "swin": (lambda: M.SwinTransformer([4, 4], 8, [2, 1], [2, 2], [2, 2], num_classes=5), (2, 3, 32, 32)),
    "vit": (lambda: M.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5), (2, 3, 16, 16)),
    "densenet": (lambda: M.DenseNet(4, (2, 1), 8, num_classes=5), (2, 3, 32, 32)),
    "tokens": (Tokens, (2, 5, 4)),
}


def small_of(name: str, sections: float = 0.2) -> tuple[nn.Module, torch.Tensor]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    randomise(model, 0)
    x = torch.randn(shape)
    net = fxcat.prepare(model, x, verbose=False, verify=False).eval()
    random_gates(net, 1, 0.4, sections)
    return fxcat.finalize(net).eval(), x


def loaded(file: Path) -> nn.Module:
    """What a file gives; it can be imported afterwards."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module.load()


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_network_does(name: str, tmp_path: Path) -> None:
    small, x = small_of(name)
    report = fxcat.export_source(small, tmp_path / f"{name}_as_source.py", x)
    assert report.max_error == 0.0
    text = report.path.read_text()
    assert "fxcat." not in text.replace("by fxcat ", "")
    assert "getattr" not in text
    made = loaded(report.path)
    with torch.no_grad():
        assert torch.equal(made(x), small(x))
    assert made.state_dict().keys() == small.state_dict().keys()
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (made, small)]
    assert trained[0] == trained[1]
    made.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_a_process_with_torch_alone(tmp_path: Path) -> None:
    small, x = small_of("resnet")
    report = fxcat.export_source(small, tmp_path / "network.py", x)
    torch.save({"x": x, "y": small(x).detach()}, tmp_path / "pair.pt")
    script = (
        "import sys; sys.modules['fxcat'] = sys.modules['torchvision'] = sys.modules['safetensors'] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import torch, network\n"
        "pair = torch.load(sys.argv[1] + '/pair.pt')\n"
        "assert torch.equal(network.load()(pair['x']), pair['y'])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path)
    assert "BasicBlock(" in report.path.read_text()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["resnet", "swin", "tokens"])
def test_tools_take_what_a_file_gives(name: str, tmp_path: Path) -> None:
    small, x = small_of(name)
    fxcat.export_source(small, tmp_path / f"{name}_for_tools.py", x, verify=False)
    made = loaded(tmp_path / f"{name}_for_tools.py")
    wanted = made(x)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), wanted)
    assert torch.allclose(torch.jit.script(made)(x), wanted, rtol=0, atol=1e-5)
    assert torch.equal(torch.compile(made, backend="eager", fullgraph=True)(x), wanted)
    exported = torch.export.export(made, (x,), strict=False).module()
    assert torch.allclose(exported(x), wanted, rtol=0, atol=1e-5)


def test_equal_blocks_share_a_class(tmp_path: Path) -> None:
    small, x = small_of("tokens", sections=0.0)
    report = fxcat.export_source(small, tmp_path / "tokens.py", x)
    assert report.classes == 3  # Tokens, Layer and Attention, of whatever widths
    assert report.path.read_text().count("class Attention") == 1


class Hostile(nn.Module):
    """Names that would be code if they were written as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ["x = 1; import os", 'a"""', "class", "__mangled", "'); raise SystemExit('"]
        for name in self.names:
            self.add_module(name, nn.Linear(4, 4))
        self.register_parameter("\n    raise SystemExit", nn.Parameter(torch.randn(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = torch.relu(getattr(self, name)(x)) + getattr(self, "\n    raise SystemExit")
        return x


Hostile.__name__ = '"""\nraise SystemExit'
Hostile.__qualname__ = "x\nraise SystemExit"


def test_names_are_data(tmp_path: Path) -> None:
    model, x = Hostile(), torch.randn(2, 4)
    report = fxcat.export_source(model, tmp_path / "hostile'; raise SystemExit.py", x)
    assert report.max_error == 0.0


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 2


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Own.apply(self.layer(x))


def doubled(_module: nn.Module, _args: Any, result: torch.Tensor) -> torch.Tensor:
    return result * 2


def test_what_has_no_source_is_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Strange())
    with pytest.raises(fxcat.ExportError, match="has no source form"):
        fxcat.export_source(model, tmp_path / "strange.py", torch.randn(2, 4))
    detector = M.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    with pytest.raises(fxcat.ExportError, match="SSD has no source form: it takes a list"):
        fxcat.export_source(detector, tmp_path / "detector.py", ([torch.rand(3, 64, 64)],))
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(doubled)
    with pytest.raises(fxcat.ExportError, match="has hooks"):
        fxcat.export_source(nn.Sequential(hooked, nn.ReLU()), tmp_path / "hooked.py", torch.randn(2, 4))
    with pytest.raises(fxcat.InputError, match="no name of a Python file"):
        fxcat.export_source(model, tmp_path / "strange.txt", torch.randn(2, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [(0, 1, 3), (1, 3), (0, 1, 2)])
def test_a_chain_that_has_lost_parts(left: tuple[int, ...], tmp_path: Path) -> None:
    """As where a whole block in a `Sequential` is removed: the names of the others have gaps."""
    chain = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4)))
    for i in sorted({0, 1, 2, 3} - set(left), reverse=True):
        del chain[i]
    names = map(str, left)
    model = nn.Sequential(OrderedDict(zip(names, chain, strict=True))).eval()
    report = fxcat.export_source(model, tmp_path / f"chain{''.join(map(str, left))}.py", torch.randn(2, 4))
    assert report.max_error == 0.0
    assert loaded(report.path).state_dict().keys() == model.state_dict().keys()


class Bump(nn.Module):
    """A layer of somebody's own that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-x.square()) * self.height


@rules.rule(Bump)
class BumpRule(rules.Elementwise):
    """Labels pass through."""


def test_layers_with_rules_of_their_own_are_written_out(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), Bump(), nn.Linear(6, 2)), torch.randn(3, 4)
    net = fxcat.prepare(model, x, verbose=False)
    random_gates(net, 0)
    report = fxcat.export_source(fxcat.finalize(net), tmp_path / "bump.py", x)
    assert report.max_error == 0.0
    assert "class Bump(nn.Module)" in report.path.read_text()
