"""The report: it says what is so, in one page that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from command_nets import residual
from small_task import Net, loader

import fxcat
from fxcat.report.layers import layer_costs
from fxcat.report.page import page

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = torch.zeros(1, 3, 8, 8)
EMPTY = {"meta", "line", "circle", "polyline", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Tags that are open, all that are used, and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.used: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.used.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.used.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


@pytest.fixture(scope="module")
def report() -> fxcat.Report:
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    found = fxcat.sensitivity(net, [next(iter(loader(64)))])
    history = fxcat.fit(net, loader(128), loader(64), epochs=3, target=fxcat.Target(flops=0.5), progress=False)
    return fxcat.Report.of(
        net,
        title="<small> & net",
        history=history,
        sensitivity=found,
        results={"latency": "3.1 ms"},
        command="fxcat train '<script>'",
        settings='name = "<b>"',
    )


def test_figures_are_those_of_the_finalized_network() -> None:
    net = fxcat.prepare(Net(), EXAMPLE, verbose=False)
    net.gates["block.0"].theta[4:] = 0.0
    net.gates["stem.0"].theta[10:] = 0.0
    report = fxcat.Report.of(net)
    small = fxcat.finalize(net)
    assert report.left.params == sum(p.numel() for p in small.parameters())
    assert [(g.units, g.left) for g in report.groups] == [(16, 10), (24, 4)]
    layers = {layer.name: layer for layer in layer_costs(net)}
    assert list(layers) == ["stem.0", "stem.1", "block.0", "block.1", "block.3", "block.4", "head"]
    for name, module in Net().named_modules():
        if name in layers:
            own = dict(small.named_modules())[name]
            assert layers[name].params == sum(p.numel() for p in module.parameters())
            assert layers[name].params_left == sum(p.numel() for p in own.parameters())
    assert sum(layer.macs for layer in layers.values()) == report.start.macs
    assert sum(layer.macs_left for layer in layers.values()) == report.left.macs
    assert report.history is None and report.sensitivity is None
    assert "removed" not in page(report)
    net.gates["block.section"].set(0.0)
    assert "removed" in page(fxcat.Report.of(net))


def test_layers_whose_names_begin_with_a_digit() -> None:
    net = fxcat.prepare(residual(blocks=1), torch.zeros(1, 1, 8, 8), verbose=False)
    layers = {layer.name: layer for layer in layer_costs(net)}
    assert list(layers) == ["0.0", "0.1", "1.conv1", "1.bn1", "1.conv2", "1.bn2", "2.2"]
    assert all(layers[name].macs and layers[name].params for name in ("0.0", "1.conv1", "2.2"))


def test_parameters_that_are_no_modules_own_are_with_the_op_that_reads_them() -> None:
    attention = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    net = fxcat.prepare(attention, torch.zeros(1, 4, 16), verbose=False)
    layers = {layer.name: layer for layer in layer_costs(net)}
    assert layers["self_attn"].params == 3 * 16 * 16 + 3 * 16 and layers["self_attn"].macs


def test_a_file_and_back(report: fxcat.Report, tmp_path: Path) -> None:
    report.save(tmp_path / "r.json")
    again = fxcat.Report.load(tmp_path / "r.json")
    assert again == report and page(again) == page(report)
    (tmp_path / "r.json").write_text('{"kind": "fxcat-report-99"}')
    with pytest.raises(fxcat.StorageError, match="another kind of file"):
        fxcat.Report.load(tmp_path / "r.json")
    with pytest.raises(fxcat.StorageError, match="cannot be written"):
        report.html(tmp_path / "none" / "r.html")


def test_the_page_is_whole_and_needs_nothing_else(report: fxcat.Report, tmp_path: Path) -> None:
    report.html(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    found = Page(text)
    assert not found.open
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.used}
    assert not re.search(r"https?://|@import|url\(", text)
    anchors = {a["href"] for tag, a in found.used if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in found.used if tag == "section" and a["id"] != "results"}
    for said in ("<small> & net", "fxcat train '<script>'", 'name = "<b>"', "3.1 ms", "output of the network"):
        assert said in found.texts, "as text, not as tags"
    assert sum(tag == "svg" for tag, _ in found.used) == 3 + len(report.groups), "charts, and a line per group"
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_what_is_no_network_with_gates() -> None:
    with pytest.raises(fxcat.InputError, match="not a GatedModule"):
        fxcat.Report.of(Net())  # type: ignore[arg-type]  # a mistake
