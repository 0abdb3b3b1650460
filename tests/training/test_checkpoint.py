"""Checkpoints of `fit`: an interrupted run ends like one that was not, and what cannot be used is refused."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import (
    EXAMPLE,
    SETUPS,
    TARGET,
    Dropping,
    Interrupted,
    InterruptingLoss,
    Result,
    Setup,
    in_own_process,
    losses_per_epoch,
    run,
)
from safetensors.torch import load_file, save_file
from small_task import Net, batches
from torch import nn
from torch.utils.data import DataLoader

import fxcat
from fxcat.training.epochs import needs_recent

SHORT = Setup(epochs=3)
"""Ends soon after it has shrunk."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run and its folder, to be copied."""
    folder = tmp_path_factory.mktemp("short")
    return folder, run(folder, SHORT)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_that_is_interrupted_in_every_epoch_ends_the_same(setup: str, tmp_path: Path) -> None:
    """Every time with another seed: nothing may depend on what the new process happens to begin with."""
    chosen = SETUPS[setup]
    whole = run(None, chosen)
    assert len(whole.net.recipe[-1].closed) >= 3
    for seed in range(chosen.epochs):
        stop = losses_per_epoch(chosen) + 3 if seed < chosen.epochs - 1 else 1
        with pytest.raises(Interrupted):
            run(tmp_path, chosen, resume=True, stop=stop, seed=seed)
    assert run(tmp_path, chosen, resume=True, seed=99).same_as(whole)


def test_a_finished_run_returns_at_once(short: tuple[Path, Result], tmp_path: Path) -> None:
    folder, whole = copied(short[0], tmp_path), short[1]
    before = contents(folder)
    again = run(folder, SHORT, resume=True, seed=1)
    assert again.steps == 0
    assert again.same_as(whole)
    assert contents(folder) == before


def test_without_resume_an_earlier_run_is_replaced(short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    assert set(contents(folder)) == {"last.safetensors", "previous.safetensors", "best.safetensors"}
    before = contents(folder)
    with pytest.raises(Interrupted):
        run(folder, SHORT, stop=3)
    assert contents(folder) == before
    with pytest.raises(Interrupted):
        run(folder, SHORT, stop=losses_per_epoch(SHORT) + 1)
    assert set(contents(folder)) == {"last.safetensors"}


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "flipped": flipped,
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("no checkpoint at all\n" * 20),
    "foreign": lambda p: save_file({"weight": torch.zeros(3)}, p),
    "a network": lambda p: shutil.copy(p.with_name("best.safetensors"), p),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_previous_checkpoint_is_used(
    damage: str, short: tuple[Path, Result], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, whole = copied(short[0], tmp_path), short[1]
    DAMAGES[damage](folder / "last.safetensors")
    if damage == "a folder":
        (folder / "last.safetensors").rmdir()  # then it is merely missing
    with caplog.at_level(logging.WARNING, "fxcat"):
        again = run(folder, SHORT, resume=True, seed=1)
    assert again.same_as(whole)
    assert again.steps == losses_per_epoch(SHORT)
    assert ("previous.safetensors instead" in caplog.text) is (damage != "a folder")
    caplog.clear()
    assert run(folder, SHORT, resume=True, seed=2).steps == 0
    assert not caplog.records


def test_a_damaged_checkpoint_does_not_push_out_the_previous_one(short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    before = contents(folder)
    flipped(folder / "last.safetensors")
    run(folder, SHORT, resume=True)
    assert contents(folder)["previous.safetensors"] == before["previous.safetensors"]


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("a network", "a folder")])
def test_no_usable_checkpoint_is_an_error(damage: str, short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    for name in ("last", "previous"):
        DAMAGES[damage](folder / f"{name}.safetensors")
    before = contents(folder)
    with pytest.raises(fxcat.StorageError, match=r"(?s)no checkpoint can be used: .*copy"):
        run(folder, SHORT, resume=True)
    assert contents(folder) == before


class Wide(Dropping):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("other", "words"),
    (
        (replace(SHORT, epochs=2), "epochs=3, this one has 2"),
        (replace(SHORT, batch=64), "steps_per_epoch=32, this one has 4"),
        (replace(SHORT, target=fxcat.Target(flops=0.6)), "'flops': 0.4.*'flops': 0.6"),
        (replace(SHORT, target=None, pressure=fxcat.Pressure(1.0)), "target="),
        (replace(SHORT, optimizer=SETUPS["adamw"].optimizer), "optimizer=None, this one has 'AdamW'"),
        (replace(SHORT, seeded_loader=True), "train_loader= has other random generators"),
        (replace(SHORT, model=Wide), r"another model.*head\.1\.weight has shape \[5, 16\], not \[4, 16\]"),
    ),
)
def test_another_run_is_refused(other: Setup, words: str, short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    before = contents(folder)
    with pytest.raises(fxcat.InputError, match=f"(?s){words}.*{folder}"):
        run(folder, other, resume=True)
    assert contents(folder) == before


def test_a_refused_state_changes_nothing(short: tuple[Path, Result]) -> None:
    net = fxcat.prepare(Dropping(), EXAMPLE, verbose=False)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(fxcat.InputError, match="target="):
        target = fxcat.Target(flops=0.9)
        train = DataLoader(batches(256), 8, shuffle=True)
        fxcat.fit(net, train, epochs=3, target=target, checkpoint_dir=short[0], resume=True, progress=False)
    after = net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_resume_needs_a_folder() -> None:
    with pytest.raises(fxcat.InputError, match="checkpoint_dir="):
        run(None, SHORT, resume=True)


class Strange(torch.optim.lr_scheduler.LRScheduler):
    """A scheduler whose state holds a function."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.rule = lambda epoch: 0.1
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [0.1]


def test_state_that_is_no_data_is_refused_before_training(short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    before = contents(folder)
    setup = Setup(lambda p: torch.optim.SGD(p, lr=0.1), Strange)
    with pytest.raises(fxcat.InputError, match=r"(?s)function cannot be stored.*state\.scheduler\.rule"):
        run(folder, setup, stop=0)
    assert contents(folder) == before


class Holding(torch.optim.SGD):
    """An optimizer that keeps an object for every parameter."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["object"] = object()
        return super().step(closure)


def test_state_that_is_no_data_overwrites_nothing(short: tuple[Path, Result], tmp_path: Path) -> None:
    folder = copied(short[0], tmp_path)
    before = contents(folder)
    with pytest.raises(fxcat.InputError, match=r"(?s)object cannot be stored.*stem\.0\.weight\.object"):
        run(folder, Setup(lambda p: Holding(p, lr=0.1)))
    assert contents(folder) == before


def test_loading_executes_nothing(short: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(short[0], tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was opened")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert run(folder, SHORT, resume=True).same_as(short[1])
    fxcat.load(folder / "best.safetensors", Dropping())


def test_the_best_network_is_kept(short: tuple[Path, Result]) -> None:
    folder, whole = short
    best = fxcat.load(folder / "best.safetensors", Dropping().eval())
    images, labels = batches(64, 1).tensors
    with torch.no_grad():
        accuracy = (best(images).argmax(1) == labels).float().mean().item()
    assert whole.history.best is not None
    assert accuracy == pytest.approx(whole.history.best.val_accuracy)
    assert sum(p.numel() for p in best.parameters()) == whole.net.hard_cost().params


def test_the_best_network_is_written_before_the_state_that_says_so(
    short: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert short[1].history.best is short[1].history.epochs[2]
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(tmp_path, SHORT, resume=True, stop=losses_per_epoch(SHORT) + 1)

    def killed(*args: Any, **options: Any) -> None:
        raise Interrupted

    monkeypatch.setattr("fxcat.training.checkpoints.write_tensors", killed)
    with pytest.raises(Interrupted):
        run(tmp_path, SHORT, resume=True)
    assert load_file(tmp_path / "best.safetensors").keys() == load_file(short[0] / "best.safetensors").keys()


@pytest.mark.parametrize(
    ("done", "steps", "needed"),
    ((200, 100, False), (200, 15, True), (484, 100, False), (485, 100, True), (499, 100, True), (500, 15, False)),
)
def test_recent_batches_are_stored_only_where_they_are_needed(done: int, steps: int, needed: bool) -> None:
    """They may be larger than the network. The structure becomes final at step 500."""
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    target = fxcat.Target(flops=0.5)
    controller = fxcat.GateController(net, optimizer, target=target, total_steps=1000, until=0.5, shrinks=1)
    controller.steps = done
    assert needs_recent(controller, steps) is needed


def start(folder: Path, result: Path, moment: tuple[str, int] | None = None, slow: float = 0.0) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxcat", "interrupted"])
    process = context.Process(target=in_own_process, args=(str(folder), str(result), moment, slow))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The result of a run in a process of its own, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start(folder, folder / "warm up").join(120)
    result, begin = folder / "result", time.perf_counter()
    process = start(folder / "checkpoints", result)
    process.join(120)
    assert process.exitcode == 0
    return result, time.perf_counter() - begin


def ended_like(result: Path, expected: Path) -> bool:
    found, wanted = load_file(result), load_file(expected)
    return found.keys() == wanted.keys() and all(torch.equal(v, wanted[k]) for k, v in found.items())


@pytest.mark.parametrize("moment", (("before", 1), ("after", 2), ("before", 3), ("after", 8)))
def test_killed_while_a_file_is_put_in_its_place(
    moment: tuple[str, int], undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    process = start(tmp_path / "run", tmp_path / "result", moment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "hanging").exists():
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    process = start(tmp_path / "run", tmp_path / "result")
    process.join(120)
    assert process.exitcode == 0
    assert ended_like(tmp_path / "result", undisturbed[0])
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.parametrize("times", [pytest.param(8, marks=pytest.mark.long), pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments(times: int, undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    """Writing takes about half of the time. A run that comes to its end is compared, and another one begins."""
    expected, duration = undisturbed
    moments = random.Random(0)
    runs = killed = 0
    while killed < times or runs == 0:
        folder, result = tmp_path / f"run{runs}", tmp_path / f"result{runs}"
        process = start(folder, result, slow=0.05)
        process.join(moments.uniform(0, 1.5 * duration) if killed < times else 120)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0
        if result.exists():
            assert ended_like(result, expected)
            runs += 1


def test_an_optimizer_of_all_parameters_goes_on(tmp_path: Path) -> None:
    """It was given theta too, which is not its own to train."""

    def weights(folder: Path | None, *, stop: int | None = None, resume: bool = False) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        loader = DataLoader(batches(64), 8)
        options: dict[str, Any] = {"epochs": 4, "target": TARGET, "optimizer": optimizer, "progress": False}
        fxcat.fit(net, loader, loss=InterruptingLoss(stop), checkpoint_dir=folder, resume=resume, **options)
        return list(net.weight_parameters())

    for stop in (12, 30):
        folder = tmp_path / str(stop)
        with pytest.raises(Interrupted):
            weights(folder, stop=stop)
        pairs = zip(weights(folder, resume=True), weights(None), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
