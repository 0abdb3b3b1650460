"""The command: the whole way on a small net, what a run leaves, repeated runs, exit codes and messages."""

from __future__ import annotations

import json
import re
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from artificial_latency import table_for
from command_nets import depthwise, residual
from telling import told
from torch import nn

import fxcat
from fxcat.cli.main import main
from fxcat.cli.toml_file import read_settings

NET = "command_nets:residual"
SMALL = ["--data", "digits", "--size", "8", "--batch-size", "128"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # the command adds it, and it is gone afterwards
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("run") / "a"
    size = ["--epochs", "2", "--flops", "0.6", "--lr", "0.1", "--sensitivity", "--quiet"]
    assert main(["train", NET, *SMALL, *size, "--out", str(folder)]) == 0
    return folder


def test_from_inspect_to_export(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(
        capsys, "inspect", NET, *SMALL, "--sensitivity", "--batches", "1", "--flops", "0.6", "--report", "i.html"
    )
    assert "smallest reachable" in text and "can be met" in text and "growth of the loss" in text
    assert "Sensitivity" in (here / "i.html").read_text(encoding="utf-8")
    assert {p.name for p in run.iterdir()} == {
        *("run.toml", "run.json", "history.json", "network.safetensors", "report.json", "report.html", "checkpoints"),
    }
    small = fxcat.load(run / "network.safetensors", residual())
    macs = json.loads((run / "report.json").read_text())["left"]["macs"]
    net = fxcat.prepare(small, torch.zeros(1, 1, 8, 8), verbose=False)
    assert net.start_cost.macs == macs
    text = told(capsys, "export", str(run), "--onnx", "small.onnx")
    assert re.search(r"small.onnx: 0.0\d MB, opset \d+, largest error [\d.]+e-0\d at batches 1, 4", text)
    told(capsys, "export", str(run), "--onnx", "half.onnx", "--half", "--no-verify")
    assert (here / "half.onnx").stat().st_size < (here / "small.onnx").stat().st_size
    text = told(capsys, "export", str(run), "--folder", "published")
    assert fxcat.load_folder("published", trust_source=True)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert "validation accuracy" in (here / "published" / "README.md").read_text(encoding="utf-8")
    text = told(capsys, "report", str(run), "--html", "again.html")
    assert "again.html" in text
    assert (here / "again.html").read_text(encoding="utf-8") == (run / "report.html").read_text(encoding="utf-8")


def test_bench(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "bench", str(run), "--repeats", "3")
    assert re.search(r"dense .* \d+\.\d\d .*\n.*small .* \d+\.\d\d ", text) and "times as fast" in text
    assert "ONNX Runtime, CPU, batch 1" in (run / "report.html").read_text(encoding="utf-8")


def test_export_as_several_things_at_once(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "export", str(run), "--source", "small.py", "--onnx", "small.onnx")
    assert re.search(r"small.py: \d+ lines, weights in small.safetensors, largest error 0.0e\+00", text)
    x = torch.rand(2, 1, 8, 8)
    network = runpy.run_path("small.py")["load"]()
    assert torch.equal(network(x), fxcat.load(run / "network.safetensors", residual()).eval()(x))
    assert (here / "small.onnx").exists() and not (run / "model.onnx").exists()
    told(capsys, "export", str(run), "--folder", "bare", "--no-source")
    assert not (here / "bare" / "network.py").exists() and (here / "bare" / "model.onnx").exists()


@pytest.fixture
def table(here: Path) -> float:
    """A file t.json with what the net's ops take; returns the milliseconds of a run."""
    net = fxcat.prepare(residual(), torch.zeros(1, 1, 8, 8), verbose=False)
    found = table_for(net, step=1)
    found.save(here / "t.json")
    net.use_latency(found)
    assert net.latency is not None
    return net.latency.start


def share_of_time(text: str) -> float:
    found = re.search(r"expected time, torch, cpu, 1 thread, batch 1: .* ms of .* ms \(([\d.]+)%\)", text)
    assert found, text
    return float(found[1]) / 100


@pytest.mark.parametrize("command", ["prune", "train"])
def test_to_a_share_of_the_milliseconds(
    command: str, table: float, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "2", "--quiet"] if command == "train" else ["--batches", "1"]
    asked = ["--latency", "0.6", "--latency-table", "t.json", "--out", "a"]
    text = told(capsys, command, NET, *SMALL, *more, *asked)
    assert 0.4 < share_of_time(text) <= 0.6
    assert "expected time" in (here / "a" / "report.html").read_text(encoding="utf-8")
    (here / "t.json").unlink()  # the run has its own
    text = told(capsys, command, "--config", "a/run.toml", "--out", "b", *more)
    assert 0.4 < share_of_time(text) <= 0.6
    assert read_settings(Path("b", "run.toml")).prune.latency_table == str(Path("b", "latency_table.json"))


def test_to_milliseconds(table: float, capsys: pytest.CaptureFixture[str]) -> None:
    given = [NET, *SMALL, "--latency-table", "t.json", "--milliseconds"]
    assert 0.4 < share_of_time(told(capsys, "prune", *given, str(0.5 * table), "--batches", "1")) <= 0.5
    assert "latency at the start" in told(capsys, "inspect", *given, str(0.5 * table))
    assert "give fewer --milliseconds" in told(capsys, "inspect", *given, str(1.1 * table), code=1)
    assert "give one of the two" in told(capsys, "inspect", *given, "1", "--latency", "0.5", code=1)


def test_a_table_is_measured_where_none_is_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `bench`, for another machine; and by what needs one."""
    text = told(capsys, "bench", NET, *SMALL, "--runtime", "torch", "--repeats", "1", "--threads", "1")
    assert "latency-residual.json" in text and "torch, cpu, 1 thread, batch 1: " in text and "1.conv1" in text
    assert fxcat.LatencyTable.load("latency-residual.json").runtime == "torch"
    assert "latency at the start" in told(capsys, "inspect", NET, *SMALL, "--latency-table", "latency-residual.json")
    text = told(capsys, "inspect", NET, "--size", "12", "--latency-table", "latency-residual.json", code=1)
    assert "of another network" in text and "make one by fxcat bench" in text
    with pytest.MonkeyPatch.context() as patch:  # which share can be reached is not for a busy machine to say
        patch.setattr(fxcat.LatencyTable, "measure", partial(table_for, step=1))
        text = told(capsys, "prune", NET, *SMALL, "--latency", "0.7", "--out", "a", "--batches", "1")
    assert "measuring what the network's ops take" in text and share_of_time(text) <= 0.7
    assert (here / "a" / "latency_table.json").exists()


def test_a_run_that_a_mistake_ended_leaves_its_folder_free(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["prune", NET, *SMALL, "--out", "a", "--batches", "1"]
    assert "cannot be reached" in told(capsys, *given, "--flops", "1e-6", code=1)
    told(capsys, *given, "--flops", "0.5")
    assert "has a run in it already" in told(capsys, *given, code=1)


def test_a_run_is_repeated_from_its_folder(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--config", str(run / "run.toml"), "--out", "again", "--quiet")
    again, first = (fxcat.load(f / "network.safetensors", residual()) for f in (here / "again", run))
    for (name, one), (_, other) in zip(again.state_dict().items(), first.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert read_settings(here / "again" / "run.toml") == read_settings(run / "run.toml")


def test_a_run_goes_on(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "train", "--config", str(run / "run.toml"), "--out", "b", "--quiet", "--epochs", "1")
    text = told(capsys, "train", "--config", str(run / "run.toml"), "--out", "b", code=1)
    assert "has a run in it already" in text and "--resume" in text
    text = told(capsys, "train", "--resume", "--out", "b", "--epochs", "2")
    assert len(re.findall(r"^epoch ", text, re.MULTILINE)) == 1, "one more"
    assert len(fxcat.History.load(here / "b" / "history.json").epochs) == 2


def test_prune_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = residual()
    torch.save({"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}, "w.pt")
    text = told(capsys, "prune", NET, "--weights", "w.pt", *SMALL, "--flops", "0.7", "--batches", "1")
    found = re.search(r"^([\d.]+)% of the MACs \(", text, re.MULTILINE)
    assert found and 65 < float(found[1]) <= 70
    assert "validation accuracy after" in text
    small = fxcat.load("runs/residual-1/network.safetensors", residual())
    *_, bias = small.parameters()
    *_, given = model.parameters()
    assert torch.equal(bias, given), "weights are those of the file"
    text = told(capsys, "prune", NET, "--quiet")
    assert read_settings(here / "runs" / "residual-2" / "run.toml").data.size == 224, "as it was prepared"
    assert (here / "runs" / "residual-2" / "report.html").exists() and "accuracy" not in text


def test_widths_are_aligned_as_by_prepare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, options in (("aligned", ()), ("any", ("--round-to", "1"))):
        told(capsys, "prune", "command_nets:depthwise", *SMALL, "--flops", "0.55", "--out", place, "--quiet", *options)
    aligned, free = (fxcat.load(here / p / "network.safetensors", depthwise()) for p in ("aligned", "any"))
    left = [[m.out_channels for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (aligned, free)]
    assert all(width % 8 == 0 for width in left[0]) and any(width % 8 for width in left[1]), left
    assert read_settings(here / "aligned" / "run.toml").prune.round_to is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "resnet1O8"], 1, "no model is named 'resnet1O8'"),
        (["inspect", "no_such_package.nets:made"], 1, "there is no module 'no_such_package'"),
        (["inspect", "command_nets:missing"], 1, "command_nets has no 'missing'"),
        (["inspect", "command_nets:nothing"], 1, "is no function"),
        (["inspect", "command_nets:broken"], 1, "RuntimeError: out of order"),
        (["inspect", NET, "--arg", "depth=3"], 1, "cannot be made with {'depth': 3}"),
        (["inspect", NET, "--arg", "depth"], 1, "is no NAME=VALUE"),
        (["inspect", NET, "--pretrained"], 1, "has no pretrained weights"),
        (["inspect", NET, "--weights", "none.pt"], 1, "no weights can be read"),
        (["inspect", NET, "--gates", "channels"], 1, "choose one of"),
        (["inspect"], 1, "no model is named"),
        (["inspekt"], 2, "No such command"),
        (["train", NET, "--epochs", "many"], 2, "not a valid integer"),
        (["train", NET, "--resume"], 1, "give --out"),
        (["train", NET, "--data", "nowhere"], 1, "no folder and no data set 'nowhere'"),
        (["train", NET, "--data", "cifar10"], 1, "--download"),
        (["train", NET, *SMALL, "--flops", "1.5"], 1, "outside (0, 1]"),
        (["train", NET, *SMALL, "--batch-size", "5000"], 1, "less than a batch"),
        (["train", NET, *SMALL, "--device", "nonsense"], 1, "--device='nonsense' cannot be used"),
        (["train", NET, *SMALL, "--epochs", "0"], 1, "train.epochs = 0 is too small"),
        (["train", NET, "--size", "0"], 1, "data.size = 0 is too small"),
        (["prune", NET, *SMALL, "--batches", "0"], 2, "x>=1"),
        (["train", "torchvision:no_net"], 1, "torchvision has no model"),
        (["train", "timm:hf-hub:somebody/net"], 1, "there is no module"),
        (["export", "."], 1, "no folder of a run"),
        (["export", ".", "--opset", "18", "--source", "a.py"], 1, "give --onnx FILE"),
        (["export", ".", "--license", "mit"], 1, "give --folder"),
        (["bench", "."], 1, "no folder of a run"),
        (["bench", ".", "--table", "t.json"], 1, "--table is for a model"),
        (["bench", ".", "--classes", "3"], 1, "--classes is for a model"),
        (["bench"], 1, "no model is named"),
        (["inspect", NET, "--latency-table", "none.json"], 1, "no latency table can be read"),
        (["prune", NET, "--compensate"], 1, "give --data"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, *arguments, code=code)
    assert said in text and "Traceback" not in text


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--debug", "inspect", "command_nets:missing", code=1)
    assert "Traceback" in text and "named_models.py" in text


def test_a_fault_of_fxcat_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr("fxcat.cli.commands.prepared", fail)
    text = told(capsys, "inspect", NET, code=3)
    assert "RuntimeError: lost" in text and "--debug" in text and "Traceback" not in text


def test_settings_of_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "s.toml").write_text(
        '[model]\nname = "command_nets:residual"\narguments = { width = 4 }\n[prune]\nflops = 0.5\n'
    )
    text = told(capsys, "inspect", "--config", "s.toml", "--size", "8")
    assert "Target(flops=0.5" in text and re.search(r"0\.0 +│ +4 ", text)
    for content, said in (
        ("[train]\nepoch = 3", "did you mean 'epochs'"),
        ("[trian]\nepochs = 3", "did you mean 'train'"),
        ("[train]\nepochs = 3.5", "give a whole number"),
        ("[train\n", "no settings can be read"),
        ("model = 3", r"write [model]"),
    ):
        (here / "s.toml").write_text(content)
        assert said in told(capsys, "train", "--config", "s.toml", code=1)


def test_random_weights_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the weights are random" in told(capsys, "prune", "timm:test_resnet", "--size", "32", "--out", "a")
    assert "random" not in told(capsys, "prune", NET, "--size", "8", "--out", "b")


def test_inspect_sees_the_classes_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "inspect", "resnet18", "--data", "digits")
    assert re.search(r"output +│ +10 +│", text) and "growth of the loss" not in text


def test_completion(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_FXCAT_COMPLETE=bash_complete" in told(capsys, "completion", "bash")
    monkeypatch.setenv("_FXCAT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "fxcat inspect resnet1")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main([])
    assert "plain,resnet18" in capsys.readouterr().out.split()
