"""Wrong uses of every public function: each ends in a clear error, and nothing has changed."""

# wrong arguments are what this is about
# pyright: reportArgumentType=false

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from wrong_use_nets import HALF, X, made, prepared

import fxcat
from fxcat.gate_training.arguments import check_fit_arguments
from fxcat.rules import Elementwise, Rule, Zero, rule
from fxcat.utils.constant_tables import Table

BATCHES = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))]


class Things:
    """What the cases use; most of them leave it as it is."""

    def __init__(self) -> None:
        self.model = made()
        self.net = prepared(self.model)
        self.small = fxcat.finalize(self.net)
        self.gate = self.net.gates["0"]
        self.scores = torch.ones(16)
        self.sgd = torch.optim.SGD(self.net.weight_parameters(), lr=0.1)

    def controller(self, net: Any = None, **options: Any) -> fxcat.GateController:
        chosen: dict[str, Any] = {"target": HALF, "total_steps": 12, **options}
        return fxcat.GateController(self.net if net is None else net, self.sgd, **chosen)

    def fit(self, **options: Any) -> None:
        check_fit_arguments(self.net, **options)


@pytest.fixture(scope="module")
def things() -> Things:
    return Things()


def other_net() -> fxcat.GatedModule:
    return prepared(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)))


def loaded(name: str, value: object) -> None:
    """A controller's state with another value in one place."""
    controller = Things().controller()
    controller.load_state_dict(controller.state_dict() | {name: value})


Case = tuple[str, Callable[[Any], object], str]

PREPARE: list[Case] = [
    ("no model", lambda t: fxcat.prepare(None), r"prepare\(\) got a NoneType, not a torch.nn.Module"),
    ("a class", lambda t: fxcat.prepare(nn.Conv2d), r"the class Conv2d.*(?s:.*)make an instance"),
    ("gates twice", lambda t: prepared(t.net), r"it has gates already(?s:.*)prepare\(finalize"),
    ("gates inside", lambda t: prepared(nn.Sequential(t.net)), r"has gates already(?s:.*)where: 0"),
    ("weights without values", lambda t: prepared(made().to("meta")), r"meta device(?s:.*)where: 0"),
    ("no examples", lambda t: prepared(example=torch.zeros(0, 3, 8, 8)), "example inputs are empty"),
    ("other inputs, verified", lambda t: prepared(example=X.double(), verify=True), "itself does not run"),
    ("gates in a list", lambda t: prepared(gates=["units"]), r"gates=\['units'\] is unknown"),
    ("gates=None", lambda t: prepared(gates=None), "gates=None is unknown"),
    ("policy", lambda t: prepared(policy=3), "policy=3 is unknown"),
    ("round_to is a bool", lambda t: prepared(round_to=True), "round_to=True is no width"),
    ("round_to is a float", lambda t: prepared(round_to=8.0), "round_to=8.0 is no width"),
    ("round_to above all widths", lambda t: prepared(round_to=1000), "no group has the 1000 channels.*widest has 8"),
    (
        "a multiple above a width",
        lambda t: prepared(limits={"0": fxcat.Limits(multiple_of=9)}),
        "no group has the 9 channels",
    ),
    ("limits", lambda t: prepared(limits=3), "limits= is an int, not a Mapping"),
    ("limits by number", lambda t: prepared(limits={0: fxcat.Limits(keep=True)}), "limits={0: a Limits} is none"),
    ("ignore=None", lambda t: prepared(ignore=None), "ignore=None is no list of names"),
    ("ignore, one name", lambda t: prepared(ignore="0"), "ignore='0' is one string"),
    ("ignore by number", lambda t: prepared(ignore=[0]), "ignore= names 0"),
    ("ignore, a generator", lambda t: prepared(ignore=(n for n in ("nope",))), "ignore= names 'nope'"),
    ("verbose", lambda t: prepared(verbose="no"), "verbose='no' is neither True nor False"),
    ("verify", lambda t: prepared(verify=X), "verify=a Tensor is neither"),
    ("gate_inputs", lambda t: prepared(gate_inputs="x"), "gate_inputs='x'"),
    ("bypasses in no model", lambda t: fxcat.add_bypasses("net"), r"add_bypasses\(\) got a str"),
    ("bypasses, ignore", lambda t: fxcat.find_bypasses(made(), X, ignore="0"), "one string"),
]

RECORDS: list[Case] = [
    *(
        (f"Target({value!r})", lambda t, value=value: fxcat.Target(flops=value), r"Target\(flops\)?=.*is no number")
        for value in ("a", True, [0.5], torch.tensor(0.5))
    ),
    ("Target(layers)", lambda t: fxcat.Target(flops=0.5, layers=None), r"Target\(layers=None\) is no number"),
    ("Limits(most_pruned), large", lambda t: fxcat.Limits(most_pruned=10**400), "is no share"),
    ("Pressure(nu) text", lambda t: fxcat.Pressure(nu="a"), r"Pressure\(nu='a'\) is no number"),
    ("Pressure(params)", lambda t: fxcat.Pressure(1.0, params=None), r"Pressure\(params=None\)"),
    ("Limits(least)", lambda t: fxcat.Limits(least=True), r"Limits\(least=True\) is no number of channels"),
    ("Limits(most_pruned)", lambda t: fxcat.Limits(most_pruned="x"), r"Limits\(most_pruned='x'\)"),
    ("Limits(keep)", lambda t: fxcat.Limits(keep="yes"), r"Limits\(keep='yes'\)"),
]

CONTROLLER: list[Case] = [
    ("plain model", lambda t: t.controller(t.model), "got a Sequential, not a GatedModule"),
    ("finalized", lambda t: t.controller(t.small), "pass what fxcat.prepare returned"),
    ("wrapped", lambda t: t.controller(nn.DataParallel(t.net)), r"network inside: net\.module"),
    ("target", lambda t: t.controller(target=0.5), r"target= is a float, not a Target(?s:.*)Target\(flops=0.5\)"),
    ("target class", lambda t: t.controller(target=fxcat.Target), "target= is the class Target"),
    ("pressure", lambda t: t.controller(target=None, pressure=0.5), "pressure= is a float, not a Pressure"),
    *(
        (f"total_steps={value!r}", lambda t, value=value: t.controller(total_steps=value), "total_steps=")
        for value in (1.5, "10", None, True, math.nan, 0)
    ),
    ("shrinks", lambda t: t.controller(shrinks=2.5), "shrinks=2.5 is no whole number"),
    *(
        (f"gate_lr={value!r}", lambda t, value=value: t.controller(gate_lr=value), "gate_lr=")
        for value in (-1, 0, math.nan, math.inf, "a", 10**400)
    ),
    ("warmup", lambda t: t.controller(warmup="a"), "warmup='a' is no number"),
    ("until", lambda t: t.controller(until=None), "until=None is no number"),
    ("seed", lambda t: t.controller(seed="a"), "seed='a' is no whole number"),
    ("loss class", lambda t: t.controller(loss=nn.CrossEntropyLoss), r"make an instance of it: CrossEntropyLoss\("),
    ("loss=None", lambda t: t.controller(loss=None), "loss= is a NoneType, not a function"),
    ("held_out", lambda t: t.controller(held_out=X), "held_out= is a Tensor, not batches"),
    ("averages", lambda t: t.controller(averages=nn.Identity()), r"averages= is an Identity(?s:.*)averages=\[…\]"),
    ("average, the network", lambda t: t.controller(averages=[t.net]), "is the network itself, and no copy"),
    ("average of another", lambda t: t.controller(averages=[other_net()]), "GatedModule among averages= is of another"),
    ("scaler", lambda t: t.controller(scaler=True), "scaler= is a bool, not a GradScaler"),
    ("optimizer class", lambda t: fxcat.GateController(t.net, torch.optim.SGD, target=HALF, total_steps=9), "no torch"),
    ("rewrap", lambda t: fxcat.rewrap(t.net), r"rewrap\(\) got a GatedModule"),
    ("state", lambda t: Things().controller().load_state_dict(3), "state= is an int"),
    ("ends_within", lambda t: Things().controller().ends_within(None), "steps=None"),
    ("keys of a state", lambda t: t.net.load_state_dict({1: 2}), "it has a key 1"),
    (
        "several averages",
        lambda t: t.controller(averages=[SimpleNamespace(a=t.net, b=copy.deepcopy(t.net))]),
        "holds 2 gated networks",
    ),
    ("state, empty", lambda t: Things().controller().load_state_dict({}), "it has no 'appraisal'"),
    *(
        (f"controller.shrink({value!r})", lambda t, value=value: Things().controller().shrink(value), "keep= is a")
        for value in (None, True, [1], torch.tensor(1.0), torch.full((16,), 0.5))
    ),
    (
        "averages, a number",
        lambda t: t.controller(averages=X[0, 0, 0, 0]),
        r"averages= is a Tensor(?s:.*)averages=\[…\]",
    ),
    *(
        (f"state, {name}={value!r}", lambda t, name=name, value=value: loaded(name, value), f"its '{name}' {found}")
        for name, value, found in (
            *(("schedule", [1], "is"), ("schedule", (1, None), "is"), ("gates", [1], "is"), ("closed", [None], "is")),
            *(("values", "odd", "is 'odd'"), ("random", torch.ones(()), "is"), ("random", torch.ones(2, 2), "is")),
            *(("appraisal", None, "is None"), ("slopes", 1, "is 1"), ("slopes", torch.ones(3), "has shape")),
            *(("worth.mean", None, "is None"), ("worth.mean", torch.ones(3), r"has shape \(3,\), and its 'theta'")),
            *(("worth.norm", -1.0, "is -1.0"), ("worth.norm", math.nan, "is nan"), ("worth.steps", "a", "is 'a'")),
            *(("steps", "a", "is 'a'"), ("theta", 3, "is 3"), ("schedule", 3, "is 3")),
            ("theta", torch.ones(3), r"has shape \(3,\), of 16 gates"),
        )
    ),
    ("closure", lambda t: Things().controller().step(closure=3), "closure= is an int, not a function"),
]

NET: list[Case] = [
    ("finalize", lambda t: fxcat.finalize(t.model), r"finalize\(\) got a Sequential, not a GatedModule"),
    ("finalize, other inputs", lambda t: fxcat.finalize(t.net, verify=X[:, :1]), "does not run on the inputs"),
    ("verify", lambda t: fxcat.verify(t.small, X, X), r"verify\(\) got a Tensor"),
    ("verify, other inputs", lambda t: fxcat.verify(t.small, t.net, 3), "does not run on the inputs"),
    ("summary", lambda t: t.net.summary(0.5), "target= is a float, not a Target"),
    ("no such gate", lambda t: t.net.gates["nope"], "no gate 'nope' among 2"),
    ("no gate by number", lambda t: t.net.gates[0], "no gate 0 among 2(?s:.*)'0'"),
    *(
        (f"gate.set({value!r})", lambda t, value=value: t.gate.set(value), f"gate '0' cannot take {found}")
        for value, found in (
            ("a", "'a'"),
            (None, "None"),
            (2.0, "the value 2"),
            (-1, "the value -1"),
            (math.nan, "the value nan"),
            (torch.ones(3), r"values of shape \(3,\)"),
            ([[1.0]], r"values of shape \(1, 1\)"),
            ([1.0] * 7 + [1.5], "the value 1.5"),
        )
    ),
    ("shrink", lambda t: t.net.shrink(torch.ones(3)), r"keep= is a tensor of shape \(3,\)"),
    ("shrink, a list", lambda t: t.net.shrink([1]), "keep= is a list"),
    ("shrink, no zeros and ones", lambda t: t.net.shrink(torch.full((16,), 0.7)), "zeros and ones for 16 gates"),
    ("plot", lambda t: fxcat.plot_structure(t.small, "x.png"), r"plot_structure\(\) got a Sequential"),
    ("latency", lambda t: t.net.use_latency("x.json"), r"table= is a str(?s:.*)LatencyTable\.measure"),
    ("latency, class", lambda t: t.net.use_latency(fxcat.LatencyTable), "table= is the class LatencyTable"),
    *(
        (f"recalibrate, {value!r}", lambda t, value=value: fxcat.recalibrate(t.net, value), "batches= are|not batches")
        for value in ([1], [X[:, :1]], np.float32(1), np.ones(2))
    ),
    ("recalibrate, pairs", lambda t: fxcat.recalibrate(t.net, BATCHES), r"(?s:.*)inputs without targets"),
    ("plot to nowhere", lambda t: fxcat.plot_structure(t.net, None), "path=None is no path"),
    ("history to nowhere", lambda t: fxcat.History().save(3), "path=3 is no path"),
    ("history from nowhere", lambda t: fxcat.History.load(None), "path=None is no path"),
]

SCORES: list[Case] = [
    ("one_shot, target", lambda t: fxcat.one_shot(t.net, t.scores, target=0.5), "target= is a float"),
    ("one_shot, model", lambda t: fxcat.one_shot(t.model, t.scores, target=HALF), "not a GatedModule"),
    ("one_shot, a list", lambda t: fxcat.one_shot(t.net, [1.0], target=HALF), r"scores of type list(?s:.*)a tensor"),
    ("one_shot, complex", lambda t: fxcat.one_shot(t.net, t.scores + 0j, target=HALF), "scores= are no numbers"),
    ("compensate", lambda t: fxcat.one_shot(t.net, t.scores, target=HALF, compensate=X), "compensate= is a Tensor"),
    (
        "compensate, triples",
        lambda t: fxcat.one_shot(t.net, t.scores, target=HALF, compensate=[(X, X, X)]),
        "yields a tuple of 3",
    ),
    ("warm_start, target", lambda t: fxcat.warm_start(t.net, t.scores, target=None), "target= is a NoneType"),
    ("norm_scale", lambda t: fxcat.importance.norm_scale(t.model), "not a GatedModule"),
    ("taylor, model", lambda t: fxcat.importance.taylor(t.model, BATCHES), "not a GatedModule"),
    ("taylor, tensor", lambda t: fxcat.importance.taylor(t.net, X), "batches= is a Tensor"),
    ("taylor, None", lambda t: fxcat.importance.taylor(t.net, None), "batches= is a NoneType"),
    ("taylor, triples", lambda t: fxcat.importance.taylor(t.net, [(X, X, X)]), "yields a tuple of 3"),
    (
        "taylor, loss of a number",
        lambda t: fxcat.importance.taylor(t.net, BATCHES, lambda o, y: 1.0),
        "returned a float",
    ),
    ("taylor, loss", lambda t: fxcat.importance.taylor(t.net, BATCHES, nn.CrossEntropyLoss), "make an instance"),
    (
        "estimator",
        lambda t: fxcat.importance.from_torch_pruning(t.net, None, t.model, X),
        "importance= is a NoneType",
    ),
    ("temperature", lambda t: fxcat.distillation_loss(X, X, temperature="a"), "temperature='a' is no number"),
]

FILES: list[Case] = [
    ("export with gates", lambda t: fxcat.export_onnx(t.net, "x.onnx", X), "still has gates"),
    ("export with gates inside", lambda t: fxcat.export_onnx(nn.Sequential(t.net), "x.onnx", X), "where: 0"),
    ("export None", lambda t: fxcat.export_onnx(None, "x.onnx"), r"export_onnx\(\) got a NoneType"),
    *(
        (f"export to {path!r}", lambda t, path=path: fxcat.export_onnx(t.small, path, X), "path=.* is no path")
        for path in (None, 3, "", "a\0b", b"x")
    ),
    ("opset text", lambda t: fxcat.export_onnx(t.small, "x.onnx", X, opset="18"), "opset='18' is no whole"),
    ("opset bool", lambda t: fxcat.export_onnx(t.small, "x.onnx", X, opset=True), "opset=True is no whole number"),
    (
        "batch",
        lambda t: fxcat.export_onnx(t.small, "x.onnx", X, dynamic_batch="yes"),
        "dynamic_batch='yes' is neither",
    ),
    ("save", lambda t: fxcat.save(None, "x"), r"save\(\) got a NoneType"),
    ("save to nowhere", lambda t: fxcat.save(t.small, None), "path=None is no path"),
    ("load, no model", lambda t: fxcat.load("x", None), r"load\(\) got a NoneType"),
    ("load from nowhere", lambda t: fxcat.load(3, t.model), "path=3 is no path"),
]

RULES: list[Case] = [
    *((f"rule({op!r})", lambda t, op=op: rule(op), r"rule\(\) got .*which is no op") for op in (3, None, nn.ReLU())),
    ("rule()", lambda t: rule(), r"rule\(\) got no op"),
    ("no class of rules", lambda t: rule(made)(object), "object is no subclass of Rule"),
    ("a rule", lambda t: rule(made)(Elementwise()), "an Elementwise is no subclass of Rule"),
    ("options", lambda t: rule(made, nope=1)(Elementwise), r"Elementwise cannot be made(?s:.*)options of rule"),
    ("zero", lambda t: rule(made)(type("Odd", (Elementwise,), {"zero": "yes"})), r"Odd\.zero is 'yes'(?s:.*)PRESERVES"),
]

FIT: list[Case] = [
    ("model", lambda t: check_fit_arguments(t.model, epochs=1), r"fit\(\) got a Sequential"),
    *(
        (f"fit {name}={value!r}", lambda t, name=name, value=value: t.fit(**{name: value}), f"{name}=")
        for name, value in (
            *(("epochs", 0), ("epochs", 2.5), ("epochs", "2"), ("epochs", None), ("accumulate", 0), ("seed", "a")),
            *(("lr", -1), ("lr", "a"), ("lr", math.nan), ("clip_norm", 0), ("distillation_weight", 2), ("until", "a")),
            *(("target", 0.5), ("pressure", 0.5), ("loss", nn.CrossEntropyLoss), ("loss", 3), ("schedule_per", "x")),
            *(("train_loader", None), ("train_loader", X), ("val_loader", 3), ("checkpoint_dir", 3), ("log_dir", "")),
            *(("resume", "yes"), ("teacher", "resnet18"), ("device", "gpu"), ("device", "meta"), ("device", 2.5)),
            *(
                ("averages", [nn.Identity()]),
                ("autocast", "bf16"),
                ("autocast", torch.float64),
                ("callbacks", [3]),
                ("metrics", {"a": 3}),
            ),
        )
    ),
]

CASES = [*PREPARE, *RECORDS, *CONTROLLER, *NET, *SCORES, *FILES, *RULES, *FIT]


@pytest.mark.parametrize(("call", "match"), [pytest.param(c, m, id=name) for name, c, m in CASES])
def test_wrong_uses_are_refused(things: Things, call: Callable[[Any], object], match: str) -> None:
    before = {k: v.clone() for k, v in things.net.state_dict().items()}
    modes = [m.training for m in things.net.modules()]
    with pytest.raises(fxcat.InputError, match=match) as caught:
        call(things)
    assert caught.value.remedy or caught.value.where
    after = things.net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    assert modes == [m.training for m in things.net.modules()]


@pytest.mark.parametrize("value", (-1.0, math.nan, math.inf))
def test_pressure_outside_its_range(value: float) -> None:
    with pytest.raises(fxcat.TargetError, match=r"Pressure\(nu=.* is outside \[0, ∞\)"):
        fxcat.Pressure(nu=value)


def test_right_uses_are_not_refused() -> None:
    """What looks odd, and is what people write."""
    net = prepared(verbose=0, ignore={"1"}, limits=None)
    net.gates["3"].set([1, 0, 1, 0, 1, 1, 1, 1])
    net.gates["3"].set(True)
    assert "nope" not in net.gates and net.gates.get("nope") is None
    sgd = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    fxcat.GateController(net, sgd, target=fxcat.Target(flops=1), total_steps=torch.tensor(5).numpy().max(), warmup=0)
    check_fit_arguments(
        *(net,), epochs=1, train_loader=iter(BATCHES), loss=nn.CrossEntropyLoss(), device="cpu", autocast=torch.bfloat16
    )


def test_infinite_scores_count_as_very_large_ones() -> None:
    for chosen in (slice(None), slice(0, 8)):
        net = prepared()
        scores = torch.ones(16)
        scores[chosen] = math.inf
        fxcat.one_shot(net, scores, target=HALF)
        assert net.hard_cost().macs <= 0.5 * net.start_cost.macs


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, things: Things) -> None:
    """A device, for one: `/dev/null`, by the administrator."""
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    for write in (fxcat.save, fxcat.export_source, lambda small, path: fxcat.export_onnx(small, path, X)):
        with pytest.raises(fxcat.StorageError, match="is no file, and would be replaced"):
            write(things.small, pipe)
    assert pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]


def test_fit_refuses_to_run_without_gradients(things: Things) -> None:
    for off in (torch.no_grad(), torch.inference_mode()):
        with off, pytest.raises(fxcat.InputError, match="gradients are off"):
            things.fit(epochs=1)


def test_networks_made_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    model, again = made(), made()
    with torch.inference_mode():
        with pytest.raises(fxcat.InputError, match=r"made in inference mode, and cannot(?s:.*)where: 0"):
            prepared()
        net = prepared(model)
        small = fxcat.finalize(net)
        fxcat.save(small, tmp_path / "small")
        loaded = fxcat.load(tmp_path / "small", again)
        scores = fxcat.importance.taylor(net, BATCHES)
        fxcat.one_shot(net, scores, target=HALF)
    for module in (net, small, loaded):
        module(X).sum().backward()
        assert all(p.grad is not None for p in module.parameters())


def test_tables_that_come_to_a_device_in_inference_mode() -> None:
    """They are kept, and a training pass saves them for its backward pass."""
    with torch.inference_mode():
        assert not Table(torch.arange(3)).on(torch.device("meta")).is_inference()


def test_a_rule_that_is_refused_leaves_nothing_behind() -> None:
    def own(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(fxcat.FxcatError, match="already"):
        rule(own, torch.relu)(Elementwise)

    class Doubling(Elementwise):
        zero = Zero.PRESERVES

    assert issubclass(rule(own)(Doubling), Rule)
