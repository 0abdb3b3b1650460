"""The model card: what is known of a small network, and nothing that nobody has measured."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fxcat.exporters.report import ExportReport
from fxcat.hub.config import NETWORK, ONNX, REPORT, Config
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
    measured = {**results, **_measured(onnx)}
    if measured:
        lines += ["Measured:", "", "| what | result |", "|---|---|"]
        lines += [f"| {_text(name)} | {_text(text)} |" for name, text in measured.items()] + [""]
    lines += ["## Use", "", "```python", "import fxcat", "", *_use(config), "```", ""]
    if onnx is not None:
        lines += [f"`{ONNX}` is the same network for ONNX Runtime.", ""]
    if report is not None:
        lines += [f"`{REPORT}` shows its structure, and how it came about.", ""]
        versions = ", ".join(f"{name} {text}" for name, text in report.versions.items())
        lines += ["## Made with", "", _text(versions) + ".", ""]
        lines += ["```sh", report.command, "```", ""] if report.command else []
    return "\n".join(lines)


def _use(config: Config) -> list[str]:
    """How it is loaded."""
    if config.architecture is None:
        return ["network = fxcat.load_folder(folder, model)  # the architecture that it was made from"]
    if config.architecture.is_code:
        return [f"# imports {config.architecture.name}", "network = fxcat.load_folder(folder, trust_source=True)"]
    return [f"network = fxcat.load_folder(folder)  # reads {NETWORK}"]


def _measured(onnx: ExportReport | None) -> dict[str, str]:
    if onnx is None:
        return {}
    found = {f"size of {ONNX}": f"{onnx.bytes / 1e6:.2f} MB"}
    if onnx.max_error is not None:
        found[f"largest difference of {ONNX} from PyTorch"] = f"{onnx.max_error:.1e}"
    return found


def _text(text: str) -> str:
    return text.translate(ESCAPED)
