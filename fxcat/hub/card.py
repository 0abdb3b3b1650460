"""The model card: what is known of a small network, and nothing that nobody has measured."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fxcat.exporters.report import ExportReport
from fxcat.exporters.source.export import SourceReport
from fxcat.hub.config import NETWORK, ONNX, REPORT, SOURCE, SOURCE_WEIGHTS, Config
from fxcat.named_models import is_code
from fxcat.report.record import Report

ESCAPED = str.maketrans({"|": "\\|", "\n": " ", "<": "&lt;", ">": "&gt;"})


def model_card(
    config: Config,
    *,
    title: str,
    license: str | None,
    results: Mapping[str, str],
    report: Report | None,
    onnx: ExportReport | None,
    source: SourceReport | None,
) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    front = ["library_name: fxcat", "tags:", "- fxcat", "- pruning", "- pytorch", *(["- onnx"] if onnx else [])]
    front += [f"license: {json.dumps(license)}"] if license else []
    lines = ["---", *front, "---", "", f"# {_text(title)}", ""]
    made = "" if config.architecture is None else f" from `{_text(config.architecture.name)}`"
    lines += [f"A network that fxcat {config.fxcat_version} made smaller{made}.", "", "## Figures", ""]
    lines += ["| | this network | before |", "|---|---|---|"]
    for name, now, before in (
        ("parameters", config.params, config.start_params),
        ("multiply-adds for one example (one is two FLOPs)", config.macs, config.start_macs),
    ):
        if now is not None:
            lines.append(f"| {name} | {now:,} | {'' if before is None else f'{before:,} ({now / before:.1%} left)'} |")
    lines.append("")
    measured = {**results, **_measured(onnx, source)}
    if measured:
        lines += ["Measured:", "", "| what | result |", "|---|---|"]
        lines += [f"| {_text(name)} | {_text(text)} |" for name, text in measured.items()] + [""]
    lines += ["## Use", "", "```python", "import fxcat", "", *_use(config, source), "```", ""]
    if source is not None:
        lines += [f"`{SOURCE}` is the same network as plain layers, with its weights in `{SOURCE_WEIGHTS}`. It needs"]
        lines += ["torch alone, and running it executes what it says, so look at it first:", "", "```python"]
        lines += ["import runpy", "", f'network = runpy.run_path(folder + "/{SOURCE}")["load"]()', "```", ""]
    if onnx is not None:
        lines += [f"`{ONNX}` is the same network for ONNX Runtime.", ""]
    if report is not None:
        lines += [f"`{REPORT}` shows its structure, and how it came about.", ""]
        versions = ", ".join(f"{name} {text}" for name, text in report.versions.items())
        lines += ["## Made with", "", _text(versions) + ".", ""]
        lines += ["```sh", report.command, "```", ""] if report.command else []
    return "\n".join(lines)


def _use(config: Config, source: SourceReport | None) -> list[str]:
    """How it is loaded."""
    if config.architecture is not None and not is_code(config.architecture.name):
        return [f"network = fxcat.load_folder(folder)  # reads {NETWORK}"]
    if source is not None:
        return [f"network = fxcat.load_folder(folder, trust_source=True)  # runs {SOURCE}"]
    if config.architecture is not None:
        return [f"network = fxcat.load_folder(folder, trust_source=True)  # imports {config.architecture.name}"]
    return ["network = fxcat.load_folder(folder, model)  # the architecture that it was made from"]


def _measured(onnx: ExportReport | None, source: SourceReport | None) -> dict[str, str]:
    found: dict[str, str] = {}
    if onnx is not None:
        found[f"size of {ONNX}"] = f"{onnx.bytes / 1e6:.2f} MB"
        if onnx.max_error is not None:
            found[f"largest difference of {ONNX} from PyTorch"] = f"{onnx.max_error:.1e}"
    if source is not None and source.max_error is not None:
        found[f"largest difference of {SOURCE} from the network"] = f"{source.max_error:.1e}"
    return found


def _text(text: str) -> str:
    return text.translate(ESCAPED)
