"""What runs leave in their folders where something goes wrong, and what other inputs and data than images become."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from artificial_latency import table_for
from command_nets import residual
from PIL import Image
from telling import told

import fxcat
from fxcat.cli.main import main
from fxcat.cli.toml_file import read_settings

NET = "command_nets:residual"
SMALL = ["--data", "digits", "--size", "8", "--batch-size", "128", "--quiet"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(here: Path) -> Path:
    assert main(["train", NET, *SMALL, "--epochs", "1", "--out", "a"]) == 0
    return here / "a"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["resnet18"], "the run has model.name = 'command_nets:residual'"),
        (["--flops", "0.3"], "prune.flops = 0.5, and 0.3 is asked for"),
        (["--lr", "0.3", "--epochs", "2"], "train.lr = 0.05, and 0.3 is asked for"),
        (["--size", "12"], "data.size = 8"),
    ],
)
def test_a_run_that_is_to_go_on_as_another_stays_as_it_was(
    given: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    text = told(capsys, "train", "--resume", "--out", "a", "--quiet", *given, code=1)
    assert said in text and "--epochs may be more" in text
    assert contents(run) == before
    told(capsys, "train", "--resume", "--out", "a", "--quiet", "--epochs", "2", "--flops", "0.5", "--workers", "0")
    before = contents(run)
    assert "had epochs=2" in told(capsys, "train", "--resume", "--out", "a", "--quiet", "--epochs", "1", code=1)
    assert contents(run) == before


def test_a_mistake_leaves_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--lr", "-1"], ["--flops", "1e-6"], ["--clip-norm", "0"]):
        told(capsys, "train", NET, *SMALL, *given, code=1)
        told(capsys, "train", NET, *SMALL, *given, "--out", "b/c", code=1)
    assert not [*here.iterdir()]


def test_settings_of_ones_own_are_not_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run.toml").write_text(f'# mine\n[model]\nname = "{NET}"\n')
    text = told(capsys, "prune", "--config", "run.toml", "--size", "8", "--out", ".", code=1)
    assert "is of no run, and would be replaced" in text
    assert (here / "run.toml").read_text().startswith("# mine")


def test_a_run_with_a_table_can_be_moved(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = fxcat.prepare(residual(), torch.zeros(1, 1, 8, 8), verbose=False)
    table_for(net, step=1).save(here / "t.json")
    told(capsys, "prune", NET, *SMALL, "--latency", "0.6", "--latency-table", "t.json", "--out", "a")
    (here / "t.json").unlink()
    (here / "a").rename(here / "b")
    told(capsys, "prune", "--config", "b/run.toml", "--quiet", "--out", "c")
    assert read_settings(Path("c", "run.toml")).prune.latency_table == str(Path("c", "latency_table.json"))
    assert 'latency_table = "latency_table.json"' in (here / "c" / "run.toml").read_text()


@pytest.mark.parametrize(
    ("name", "content"), [("bench.json", "[1]"), ("bench.json", "{"), ("report.json", "[]"), ("report.json", "{}")]
)
def test_files_of_another_form(name: str, content: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).write_text(content)
    for command in ("report", "bench"):
        assert "can be read" in (text := told(capsys, command, "a", code=1)).replace("cannot be", "can be"), text


def test_a_run_that_has_not_ended(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", NET, *SMALL, "--epochs", "1", "--out", "a b"]) == 0
    for name in ("network.safetensors", "report.json"):
        (here / "a b" / name).unlink()
    for command in ("report", "export", "bench"):
        text = told(capsys, command, "a b", code=1)
        assert "its run has not ended" in text and "--resume --out 'a b'" in text


def test_what_takes_other_things_than_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their run knows what the network was prepared with."""
    told(capsys, "prune", "command_nets:volumes", "--out", "a", "--quiet")
    text = told(capsys, "export", "a", "--source", "v.py", "--onnx", "v.onnx", "--folder", "f")
    assert "largest error" in text and json.loads((here / "f" / "config.json").read_text())["input_shape"][1:2] == [1]
    assert "times as fast" in told(capsys, "bench", "a", "--repeats", "1")


@pytest.fixture
def images(here: Path) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        folder = here / "images" / kind
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((9, 9, 3), number, dtype="uint8")).save(folder / f"{number}.png")
        return folder

    return write


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read(
    workers: str, images: Callable[[str], Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images("cat")
    (images("dog ü") / "3.png").write_bytes(b"no image")
    given = ["--data", "images", "--size", "8", "--batch-size", "4", "--workers", workers, "--quiet"]
    text = told(capsys, "train", NET, *given, "--epochs", "1", code=1)
    assert "cannot be read" in text and "3.png" in text and "Traceback" not in text
    assert not (here / "runs").exists()


def test_images_of_other_channels(images: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    images("cat")
    given = ["--data", "images", "--size", "8", "--batch-size", "2"]
    assert "images of 4 channels" in told(capsys, "train", "command_nets:four", *given, code=1)


def test_data_sets_that_want_to_be_told_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --data FOLDER" in told(capsys, "train", NET, "--data", "EMNIST", code=1)


def test_a_terminal_that_knows_few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert main(["inspect", NET, "--size", "8"]) == 0
    plain.flush()


def test_a_file_is_no_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nets:small of a file nets.py" in told(capsys, "inspect", f".{os.sep}nets.py:small", code=1)
