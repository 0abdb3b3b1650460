"""The report in a real browser: light and dark, wide and narrow, on paper. (Runs where a Chromium is installed.)"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from small_task import Net, loader

import fxcat

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
WIDTHS = (360, 1200)
READABLE = 4.5
"""Contrast of text of this size at least (WCAG 2.1, 1.4.3)."""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

MEASURE = """
<body><script>
const text = %s, widths = %s, found = [];
const parts = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = parts(c).map(linear);
  return .2126 * r + .7152 * g + .0722 * b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
const behind = e => { const c = getComputedStyle(e).backgroundColor;
  return c != 'rgba(0, 0, 0, 0)' || !e.parentElement ? c : behind(e.parentElement); };
for (const width of widths) {
  const frame = document.createElement('iframe');
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument, all = [...page.querySelectorAll('main :not(title)')];
    const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    const worst = Math.min(...all.filter(own).map(e => { const style = getComputedStyle(e);
      return contrast(e.namespaceURI.endsWith('svg') ? style.fill : style.color, behind(e)); }));
    found.push({ width, scroll: page.documentElement.scrollWidth, worst,
      back: getComputedStyle(page.body).backgroundColor,
      empty: [...page.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height < 10).length });
    document.title = JSON.stringify(found);
  };
  frame.srcdoc = text;
  document.body.append(frame);
}
</script>
"""


def browse(*options: str) -> str:
    """What Chromium prints."""
    always = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
    command = [str(BROWSER), *always, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    found = fxcat.sensitivity(net, [next(iter(loader(64)))])
    history = fxcat.fit(net, loader(64), loader(64), epochs=3, target=fxcat.Target(flops=0.5), progress=False)
    path = tmp_path_factory.mktemp("report") / "report.html"
    settings = "a = " + "very long " * 40
    made = fxcat.Report.of(net, history=history, sensitivity=found, settings=settings, title="A_long_name" * 12)
    made.html(path)
    return path


def measured(report: Path, scheme: str, folder: Path) -> list[dict[str, Any]]:
    """Of the page in frames of the widths: how wide it is, the worst contrast, its ground."""
    text = json.dumps(report.read_text(encoding="utf-8")).replace("</", "<\\/")
    page = folder / f"{scheme}.html"
    page.write_text(MEASURE % (text, json.dumps(WIDTHS)), encoding="utf-8")
    number = {"dark": 0, "light": 1}[scheme]
    shown = browse(f"--blink-settings=preferredColorScheme={number}", "--dump-dom", page.as_uri())
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title, shown[:500]
    return json.loads(title[1])


def test_light_and_dark_wide_and_narrow(report: Path, tmp_path: Path) -> None:
    grounds: set[str] = set()
    for scheme in ("light", "dark"):
        found = measured(report, scheme, tmp_path)
        assert sorted(f["width"] for f in found) == list(WIDTHS)
        for frame in found:
            assert frame["scroll"] <= frame["width"], f"{scheme}: the page is wider than its window"
            assert frame["worst"] >= READABLE, f"{scheme}: a text that cannot be read"
            assert not frame["empty"]
            grounds.add(frame["back"])
    assert len(grounds) == 2, "the dark one is another"


def test_on_paper(report: Path, tmp_path: Path) -> None:
    browse(f"--print-to-pdf={tmp_path / 'report.pdf'}", report.as_uri())
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", content)) >= 1
