"""Wrong arguments of what is made beside networks: records, reports, mappings, folders; each ends in a clear error."""

# wrong arguments are what this is about
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from wrong_use_nets import HALF, X, made, prepared

import fxcat
from fxcat.scores.importance import unit_scales

BATCHES = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))]
LARGE = 10**400

Case = tuple[str, Callable[[fxcat.GatedModule], object], str]


def controller(net: fxcat.GatedModule, **options: object) -> fxcat.GateController:
    sgd = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    return fxcat.GateController(net, sgd, **{"target": HALF, "total_steps": 12, **options})


def other() -> fxcat.GatedModule:
    """Whose groups have other names."""
    return prepared(nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)), nn.Flatten()))


def other_history() -> fxcat.History:
    batches = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))] * 2
    return fxcat.fit(other(), batches, epochs=1, target=HALF, progress=False)


def other_sensitivity() -> fxcat.Sensitivity:
    return fxcat.sensitivity(other(), BATCHES)


RECORDS: list[Case] = [
    ("limits, then", lambda n: fxcat.Limits().then(3), "other= is an int, not a Limits"),
    ("architecture, classes", lambda n: fxcat.Architecture("resnet18", classes="3"), r"classes='3'\) is no whole"),
    ("architecture, arguments", lambda n: fxcat.Architecture("resnet18", arguments=[1]), "is a list, not a Mapping"),
    ("architecture, bypasses", lambda n: fxcat.Architecture("resnet18", bypasses="no"), "is neither True nor False"),
    ("model, arguments", lambda n: fxcat.named_model("resnet18", arguments="width"), "arguments= is a str"),
    ("model, numbers", lambda n: fxcat.named_model("resnet18", arguments={1: 2}), "names 1, which is no name"),
    (
        "model, two numbers of classes",
        lambda n: fxcat.named_model("resnet18", classes=3, arguments={"num_classes": 4}),
        "classes=3 and num_classes=4 at once",
    ),
    ("report, title", lambda n: fxcat.Report.of(n, title=3), "title=3 is no text"),
    ("report, results", lambda n: fxcat.Report.of(n, results={"accuracy": 0.76}), r"results= holds {'accuracy': 0.76}"),
    ("report, a list of results", lambda n: fxcat.Report.of(n, results=[1]), "results= is a list, not a Mapping"),
    ("report, settings", lambda n: fxcat.Report.of(n, settings={"a": 1}), "settings={'a': 1} is no text"),
    ("history", lambda n: fxcat.History(epochs=3), r"History\(epochs\)= is an int, not a list"),
    ("history, tensors", lambda n: fxcat.History(epochs=[X]), "is a Tensor, not an EpochRecord"),
    ("history, shrunk", lambda n: fxcat.History(shrunk_at="a"), "shrunk_at='a'"),
    ("written", lambda n: fxcat.Sensitivity(X, None, 1, (), ()).save("s.json"), "the sensitivity holds what no JSON"),
    ("architecture, numbers", lambda n: fxcat.Architecture("resnet18", arguments={1: 2}), "arguments=1"),
    ("report, another's history", lambda n: fxcat.Report.of(n, history=other_history()), "history= is of another"),
    ("report, another's sensitivity", lambda n: fxcat.Report.of(n, sensitivity=other_sensitivity()), "is of another"),
    ("unit_scales", lambda n: unit_scales(n.network), r"unit_scales\(\) got"),
    ("sensitivity, shares", lambda n: fxcat.sensitivity(n, BATCHES, shares=0.5), "shares= is a float, not a Sequence"),
    ("sensitivity, text", lambda n: fxcat.sensitivity(n, BATCHES, shares="0.5"), "shares='0' is no number"),
    ("kept, then", lambda n: n.kept_indices().then({}), "later= is a dict, not a KeptIndices"),
]

NETS: list[Case] = [
    ("latency, no table", lambda n: n.latency_share(n.gate_vector.theta), "has no latency table"),
    ("timed ops", lambda n: n.timed_ops("1"), "batch='1' is no whole number"),
    ("timed ops, none", lambda n: n.timed_ops(0), "batch=0 is no whole number"),
    ("removed, nothing", lambda n: n.removed(None), "keep= is a NoneType"),
    ("removed, other gates", lambda n: n.removed(torch.ones(3)), r"keep= is a tensor of shape \(3,\)"),
    ("biases, one text", lambda n: n.add_biases("0"), "paths='0' is one string"),
    ("biases, no layer", lambda n: n.add_biases(["1"]), "which is no linear layer or convolution without a bias"),
    ("biases, there already", lambda n: n.add_biases(["0"]), "without a bias"),
    ("gate, very large", lambda n: n.gates["0"].set(LARGE), "cannot take"),
    ("verify", lambda n: prepared(verify=np.ones(3)), "verify=an? .* is neither"),
    ("dump", lambda n: prepared(dump=""), "dump='' is no path"),
    ("steps, very many", lambda n: controller(n, total_steps=LARGE), "total_steps=.*is too large"),
    ("steps, a negative number", lambda n: controller(prepared()).ends_within(-1), "steps=-1 is no whole number"),
    ("an optimizer", lambda n: controller(prepared()).notice(3), "optimizer= is an int"),
    ("held out", lambda n: controller(prepared()).step(held_out=BATCHES[0]), "held_out= would do nothing"),
    ("epochs, very many", lambda n: fxcat.fit(n, BATCHES, epochs=LARGE, target=HALF), "epochs=.*is too large"),
    (
        "autocast, an array",
        lambda n: fxcat.fit(n, BATCHES, epochs=1, target=HALF, autocast=np.ones(3)),
        "is no type for mixed precision",
    ),
]

FILES: list[Case] = [
    ("title", lambda n: fxcat.save_folder(n, "f", title=3), "title=3 is no text"),
    ("license", lambda n: fxcat.save_folder(n, "f", license=["mit"]), "license=.* is no text"),
    ("results", lambda n: fxcat.save_folder(n, "f", results={"accuracy": 0.7}), "and wants texts"),
    *(
        (f"shape {shape}", lambda n, shape=shape: fxcat.save_folder(n, "f", input_shape=shape), "input_shape=")
        for shape in (3, "1388", (), (1, 3, -8, 8), (1, 3, 8.0, 8), [[1, 3, 8, 8]], (1,) * 9)
    ),
    ("names", lambda n: fxcat.export_onnx(made(), "a.onnx", X, input_names=[1]), "input_names=1 is no text"),
    ("bytes", lambda n: fxcat.export_onnx(made(), "a.onnx", X, output_names=b"x"), "output_names=120 is no text"),
    ("an empty name", lambda n: fxcat.export_onnx(made(), "a.onnx", X, output_names=[""]), "has an empty name"),
]


@pytest.fixture(scope="module")
def net() -> fxcat.GatedModule:
    return prepared(made())


@pytest.mark.parametrize(("call", "match"), [pytest.param(c, m, id=name) for name, c, m in (*RECORDS, *NETS, *FILES)])
def test_wrong_uses_are_refused(
    net: fxcat.GatedModule,
    call: Callable[[fxcat.GatedModule], object],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(fxcat.InputError, match=match) as caught:
        call(net)
    assert caught.value.remedy
    assert not [*tmp_path.iterdir()]
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[n]) for n, v in before.items())


@pytest.mark.parametrize("made_of", [fxcat.History.of, fxcat.Sensitivity.of])
@pytest.mark.parametrize("content", [None, [], {}, {"epochs": 3, "shrunk_at": "a"}, {"parts": [{"name": 1}]}])
def test_contents_of_another_form(made_of: Callable[[object], object], content: object) -> None:
    with pytest.raises(fxcat.StorageError, match=r"can be read(?s:.*)what to do"):
        made_of(content)


def test_removals_of_a_sensitivity(net: fxcat.GatedModule) -> None:
    found = fxcat.sensitivity(net, BATCHES, shares=np.array([0.5]))
    assert found.shares == (0.5,)
    with pytest.raises(fxcat.InputError, match="removal= is a float"):
        found.rise(0.5)


def test_names_of_a_generator(tmp_path: Path) -> None:
    """They can be read once only."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    fxcat.export_onnx(model, tmp_path / "a.onnx", X, input_names=(n for n in ["image"]), verify=False)
    assert [i.name for i in onnx.load(tmp_path / "a.onnx").graph.input] == ["image"]
