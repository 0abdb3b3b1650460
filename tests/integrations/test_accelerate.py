"""Loops with Accelerate train gates as plain loops do; nothing of fxcat is needed for it."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate_task import BATCHES, EPOCHS, TARGET, Run, prepared
from forked import in_two_processes
from small_task import Net, batches
from torch import nn
from torch.utils.data import DataLoader

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are the same, to the last bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def plain_loop(parts: int = 1, clip: float | None = None) -> fxcat.GatedModule:
    net = prepared()
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=5e-3)
    controller = fxcat.GateController(net, optimizer, target=TARGET, total_steps=EPOCHS * -(-BATCHES // parts))
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(DataLoader(batches(32 * BATCHES), 32)):
            (F.cross_entropy(net(x), y) / parts).backward()
            if i % parts == parts - 1 or i == BATCHES - 1:
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.weight_parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                controller.step()
    return net


PLAIN = """
    accelerator = Accelerator(cpu=True)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(4):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
    accelerator.save_state(folder)
    small = accelerator.unwrap_model(model)
"""
GATED = """
    accelerator = Accelerator(cpu=True)
    net = model = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=4 * len(loader))
    accelerator.register_for_checkpointing(controller)
    for _ in range(4):
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
                controller.step()
    accelerator.save_state(folder)
    small = fxcat.finalize(net)
"""


def test_a_user_adds_five_lines(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)
    names: dict[str, Any] = {**globals(), "Accelerator": Accelerator, "folder": str(tmp_path)}
    names["loader"] = DataLoader(batches(256), 32)
    exec(textwrap.dedent(GATED), names)
    lines = difflib.ndiff(PLAIN.splitlines(), GATED.splitlines())
    assert sum(line.startswith("+ ") for line in lines) == 5
    assert sum(p.numel() for p in names["small"].parameters()) < sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("before", [False, True])
def test_the_loop_does_what_a_plain_one_does(before: bool) -> None:
    run = Run(before=before).all()
    assert same(run.net, plain_loop())
    assert run.controller.steps == EPOCHS * BATCHES
    assert run.net.hard_cost().macs <= 0.4 * run.net.start_cost.macs


def test_parts_of_a_step_do_not_count() -> None:
    run = Run(3).all()
    assert same(run.net, plain_loop(3))
    assert run.controller.steps == run.controller.total_steps == 3 * EPOCHS


def test_clipping_clips_the_weights_alone() -> None:
    assert same(Run().all(clip=0.1).net, plain_loop(clip=0.1))


def test_mixed_precision() -> None:
    net = Run(mixed_precision="bf16").all().net
    assert 0.3 < net.hard_cost().macs / net.start_cost.macs <= 0.4
    small = fxcat.finalize(net)
    x = batches(8).tensors[0]
    torch.testing.assert_close(small.eval()(x), fxcat.finalize(net, verify=x).eval()(x))


def test_runs_go_on_from_saved_states(tmp_path: Path) -> None:
    """Before anything has gone, in the gated phase, after it."""
    run, sizes = Run(), []
    for epoch in run.epochs():
        run.accelerator.save_state(str(tmp_path / str(epoch)))
        sizes.append(sum(p.numel() for p in run.net.weight_parameters()))
    assert sizes[0] > sizes[6]
    for epoch in (0, 3, 6):
        for before in (False, True):
            again = Run(before=before)
            again.accelerator.load_state(str(tmp_path / str(epoch)))
            assert again.controller.phase == ("gated" if epoch < 4 else "plain")
            assert same(again.all(first=epoch + 1).net, run.net), (epoch, before)


def test_a_wrong_number_of_steps_is_told() -> None:
    """Batches for steps: the run ends before the gates do."""
    run = Run(4, steps=EPOCHS * BATCHES).all()
    with pytest.warns(UserWarning, match="has not ended"):
        fxcat.finalize(run.net)
    assert run.controller.finish()


@pytest.mark.long
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """And go on from states that are loaded after Accelerate has wrapped the network."""
    done = in_two_processes("accelerate_task", "train_together", tmp_path)
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["same"]
    assert found[0]["sizes"][-1] < found[0]["sizes"][0]
    assert found[0]["macs"] <= 0.4 * prepared().start_cost.macs
