"""timm's optimizers, averages, scalers, clipping, checkpoints train a network with gates."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import model_parameters
from timm.optim import Lookahead, create_optimizer_v2
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from timm_task import EPOCHS, IMAGES, PER_EPOCH, Run, resnet, train, vit

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")

WORKER = Path(__file__).parents[1] / "timm_task.py"


def macs(net: fxcat.GatedModule) -> float:
    return net.hard_cost().macs / net.start_cost.macs


def same(one: Any, other: Any) -> bool:
    states = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in states)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("whole"))


def test_a_user_adds_five_lines() -> None:
    """Beside the import: prepare, the controller, its step, and what stores and loads it."""
    added = [
        line
        for line in inspect.getsource(train).splitlines()
        if re.search(r"fxcat\.prepare|controller\b(?! are)", line)
    ]
    assert len([line for line in added if '"""' not in line and "return" not in line]) == 5


def test_all_of_it_together(whole: Run) -> None:
    """Layer decay, mixup, a scaler, adaptive clipping, an average, a schedule, checkpoints."""
    assert 0.45 < macs(whole.net) <= 0.5
    average = whole.average.module
    assert average.hard_cost() == whole.net.hard_cost() and not same(average, whole.net)
    small = fxcat.finalize(average).eval()
    torch.testing.assert_close(small(IMAGES), average.eval()(IMAGES))
    assert isinstance(small, timm.models.VisionTransformer)


class Interrupted(Exception):
    pass


def interrupt() -> None:
    raise Interrupted


def test_a_run_that_was_interrupted_before_it_shrank_goes_on(whole: Run, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, ends=interrupt, after=PER_EPOCH + 2)
    again = train(tmp_path, resume=True)
    assert same(again.net, whole.net) and same(again.average.module, whole.average.module)


@pytest.mark.long
def test_a_run_that_was_killed_goes_on(whole: Run, tmp_path: Path) -> None:
    """After the network has become smaller."""
    command = [sys.executable, str(WORKER), str(tmp_path), str((EPOCHS - 2) * PER_EPOCH + 1)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "last.pth.tar").stat().st_size < (tmp_path / "checkpoint-0.pth.tar").stat().st_size
    again = train(tmp_path, resume=True)
    assert same(again.net, whole.net) and same(again.average.module, whole.average.module)


AVERAGES: dict[str, Any] = {
    "ModelEma": lambda net: ModelEma(net, 0.8),
    "ModelEmaV2": lambda net: ModelEmaV2(net, 0.8),
    "ModelEmaV3 without buffers": lambda net: ModelEmaV3(net, 0.8, exclude_buffers=True),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_shrink_and_forgotten_ones_are_an_error(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": resnet, "average": AVERAGES[name], "layer_decay": None, "clip": "norm"}
    run = train(tmp_path, **options)
    average = run.average.ema if name == "ModelEma" else run.average.module
    assert macs(run.net) <= 0.5 and average.hard_cost() == run.net.hard_cost()
    torch.testing.assert_close(fxcat.finalize(average).eval()(IMAGES), average.eval()(IMAGES))
    with pytest.raises(fxcat.InputError, match="a copy of the network is changed while it trains"):
        train(tmp_path, **options, named=False)


@pytest.mark.parametrize("name", ["lookahead_adamw", "muon", "lion"])
def test_optimizers_of_its_list(name: str, tmp_path: Path) -> None:
    run = train(tmp_path, optimizer=name, layer_decay=None, clip="value", average=None)
    assert 0.45 < macs(run.net) <= 0.5
    assert isinstance(run.optimizer, Lookahead) == name.startswith("lookahead")
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.net.weight_parameters()}


@pytest.mark.parametrize("name", ["adafactor", "adafactorbv"])
def test_factored_state_is_refused_at_the_first_step(name: str, tmp_path: Path) -> None:
    """Both factor it from a certain width on."""
    options: dict[str, Any] = {"optimizer": name, "layer_decay": None, "average": None}
    with pytest.raises(fxcat.InputError, match=r"(keeps|cannot go on)"):
        train(tmp_path, **options, model=lambda: timm.create_model("resnet10t", num_classes=4), ends=interrupt, after=1)


def test_groups_by_name_are_those_of_the_model() -> None:
    """Whatever goes by names of parameters is given the network inside."""

    def groups(of: torch.nn.Module) -> list[Any]:
        optimizer = create_optimizer_v2(of, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
        return [(g["lr_scale"], g["weight_decay"], [p.shape for p in g["params"]]) for g in optimizer.param_groups]

    model = vit()
    net = fxcat.prepare(model, IMAGES[:1], verbose=False)
    assert groups(net.network) == groups(model)
    heads = [[p.shape for p in model_parameters(of, exclude_head=True)][-4:] for of in (model, net)]
    assert heads[0] == heads[1]
