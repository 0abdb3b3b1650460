"""`Report`: what became of a network, as plain records; a JSON file, or a page."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fxcat.checks import as_path, check_instance, check_text, check_texts, shown
from fxcat.choosing.select import smallest_cost
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.gated_checks import check_gated
from fxcat.records import Cost, Pinned
from fxcat.report.facts import Facts, GroupResult, SectionResult
from fxcat.report.layers import LayerCost, layer_costs
from fxcat.report.page import page
from fxcat.scores.sensitivity_result import Sensitivity
from fxcat.structure_plot import section_macs
from fxcat.training.history import History
from fxcat.utils.json_file import read_json, write_json
from fxcat.utils.written_files import write_text
from fxcat.version import __version__

KIND = "fxcat-report-1"
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Report(Facts):
    """What became of a network: what there is to say of it, as a page or a file."""

    @classmethod
    def of(
        cls,
        net: GatedModule,
        *,
        title: str | None = None,
        history: History | None = None,
        sensitivity: Sensitivity | None = None,
        results: Mapping[str, str] | None = None,
        command: str | None = None,
        settings: str | None = None,
    ) -> Report:
        """Of a network that was prepared, or pruned, or trained.

        `title`: by default the class of the model. `history`, `sensitivity`: what `fit` and `sensitivity` returned.
        `results`: what you have measured, as text by its name: `{"accuracy": "76.1 %"}`. `command`, `settings`: what
        the run was started with, as text. Raises `InputError` for anything else.
        """
        check_gated(net, "Report.of()")
        check_instance(history, History, "history", optional=True)
        check_instance(sensitivity, Sensitivity, "sensitivity", optional=True)
        check_texts(results, "results", optional=True)
        for name, text in (("title", title), ("command", command), ("settings", settings)):
            check_text(text, name, optional=True)
        live, start = net.live_units(), net.start_structure
        _check_own(net, history, sensitivity)
        return cls(
            title or type(net.network).__name__,
            net.start_cost,
            net.hard_cost(),
            smallest_cost(net),
            start.coverage,
            tuple(GroupResult(g.name, g.units, live[g.name], g.macs, g.params) for g in start.groups),
            tuple(_sections(net)),
            layer_costs(net),
            start.pinned,
            history,
            sensitivity,
            dict(results or {}),
            command,
            settings,
            versions(),
            datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises `StorageError` if the path cannot be written."""
        write_json(path, {"kind": KIND, **asdict(self)}, "report")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `save` wrote. Raises `StorageError` if the path cannot be read or holds something else."""
        return read_json(path, _read, "report", remedy="give a file that Report.save of this version wrote")

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that needs nothing else: no script, no font, no connection.

        Raises `StorageError` if the path cannot be written.
        """
        write_text(as_path(path), page(self), "the report")


def _check_own(net: GatedModule, history: History | None, sensitivity: Sensitivity | None) -> None:
    """Raise `InputError` for what was measured on a network of other groups or sections."""
    own = net.live_units()
    for name, found in (
        ("history", [part for epoch in history.epochs for part in epoch.open_units] if history else []),
        ("sensitivity", [part.name for part in sensitivity.parts] if sensitivity else []),
    ):
        other = next((part for part in found if part not in own), None)
        if other is not None:
            raise InputError(
                f"{name}= is of another network: this one has no group or section {shown(other)}",
                remedy=f"give the {name} of this network, or leave it out",
            )


def versions() -> dict[str, str]:
    """Of what computed, as far as it is installed."""
    found = {"fxcat": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def _sections(net: GatedModule) -> list[SectionResult]:
    live, sections, appraisal = net.live_units(), net.start_structure.sections, net.appraisal
    first = len(appraisal.worth) - len(sections)
    found: list[SectionResult] = []
    for number, (section, left) in enumerate(zip(sections, section_macs(net), strict=True)):
        worth, price = (float(part[first + number]) for part in (appraisal.worth, appraisal.price))
        known = (worth, price) if math.isfinite(worth) else (None, None)
        found.append(SectionResult(section.name, section.macs, round(left), bool(live[section.name]), *known))
    return found


def _read(content: dict[str, Any]) -> Report:
    if content.pop("kind") != KIND:
        raise ValueError("another kind of file")
    content |= {name: Cost(**content[name]) for name in ("start", "left", "smallest")}
    kinds: dict[str, Any] = {"groups": GroupResult, "sections": SectionResult, "layers": LayerCost, "pinned": Pinned}
    content |= {name: tuple(kind(**row) for row in content[name]) for name, kind in kinds.items()}
    if content["history"] is not None:
        content["history"] = History.of(content["history"])
    if content["sensitivity"] is not None:
        content["sensitivity"] = Sensitivity.of(content["sensitivity"])
    return Report(**content)
