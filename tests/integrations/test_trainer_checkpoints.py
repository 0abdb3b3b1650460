"""Checkpoints of transformers' `Trainer`: a run goes on as if it had not been killed, and the best is a whole one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from trainer_task import BEST, STEPS, TARGET, Growing, macs, prepared, same, trainer
from transformers import TrainerCallback

import fxcat
from fxcat.integrations.transformers import GateCallback

pytestmark = pytest.mark.usefixtures("one_thread")

WORKER = Path(__file__).parents[1] / "trainer_task.py"


def resumed(folder: Path, at: int | str | bool, *callbacks: TrainerCallback, **options: Any) -> fxcat.GatedModule:
    net = prepared()
    one = trainer(net, folder, GateCallback(TARGET), *callbacks, save_strategy="steps", save_steps=5, **options)
    one.train(resume_from_checkpoint=at)  # pyright: ignore[reportArgumentType]
    return net


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[fxcat.GatedModule, Path]:
    """An uninterrupted run, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return resumed(folder, False), folder


@pytest.mark.long
@pytest.mark.parametrize("at", [8, 24])
def test_a_run_that_was_killed_goes_on(at: int, whole: Any, tmp_path: Path) -> None:
    """Before and after the network has become smaller."""
    command = [sys.executable, str(WORKER), str(tmp_path), str(at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(resumed(tmp_path, True), whole[0])


def test_a_checkpoint_holds_what_is_said(whole: Any) -> None:
    net, folder = whole
    sizes = [(folder / f"checkpoint-{step}" / "model.safetensors").stat().st_size for step in (5, STEPS)]
    assert sizes[1] < sizes[0]
    state = json.loads((folder / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["GateCallback"]["args"]["target"]["flops"] == TARGET.flops
    again = resumed(folder, str(folder / "checkpoint-5"), restore_callback_states_from_checkpoint=True)
    assert same(again, net)


def test_what_is_no_checkpoint_of_the_run_is_refused(whole: Any, tmp_path: Path) -> None:
    folder = whole[1]
    with pytest.raises(fxcat.InputError, match="had total_steps=30"):
        resumed(folder, str(folder / "checkpoint-5"), max_steps=20)
    net = prepared()
    trainer(net, tmp_path, save_strategy="steps", save_steps=3, max_steps=3).train()
    with pytest.raises(fxcat.InputError, match="does not hold the state of one GateCallback"):
        resumed(tmp_path, True)


def test_the_best_checkpoint_is_one_of_the_final_structure(tmp_path: Path) -> None:
    net = prepared()
    one = trainer(net, tmp_path, GateCallback(TARGET), compute_metrics=Growing(), **BEST)
    one.train()
    assert macs(net) <= 0.5
    best = Path(str(one.state.best_model_checkpoint))
    assert 15 < int(best.name.removeprefix("checkpoint-")) < STEPS
    again = prepared()
    again.load_state_dict(load_file(best / "model.safetensors"))
    assert same(again, net)
