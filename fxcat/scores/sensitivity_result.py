"""What the loss does when parts of a network go: the record, its table, its plot, its file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from fxcat.checks import check_instance, check_path
from fxcat.utils.figures import new_figure, save_figure
from fxcat.utils.json_file import checked_content, read_json, write_json

_REMEDY = "give a file that Sensitivity.save wrote"
ROW = 0.24
"""Height of a plot's row, in inches."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Some units of a group, or a section, removed alone.

    `share`: of the units that was asked for; `closed`: how many went (widths may be rounded, and some have to stay).
    `loss`: the mean over all examples; `accuracy`: None if the network is no classifier. `macs`, `params`: what is left
    of the whole network's, as a share.
    """

    share: float
    closed: int
    loss: float
    accuracy: float | None
    macs: float
    params: float


@dataclass(frozen=True, slots=True)
class PartSensitivity:
    """A group or section; `units`: how many it has, 1 for a section. No removals: nothing of it can go."""

    name: str
    kind: Literal["units", "section"]
    units: int
    removals: tuple[Removal, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What `fxcat.sensitivity` measured. `loss`, `accuracy`: of the whole network on the same `examples` examples."""

    loss: float
    accuracy: float | None
    examples: int
    shares: tuple[float, ...]
    parts: tuple[PartSensitivity, ...]

    def rise(self, removal: Removal) -> float:
        """How much the loss grows. Raises `InputError` for anything but a `Removal`."""
        check_instance(removal, Removal, "removal", remedy="give one of part.removals")
        return removal.loss - self.loss

    def show(self) -> None:
        """Print a table: how much the loss grows when so much of a group, or a section, goes alone."""
        print_sensitivity(self, Console())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot the same into an image file.

        Raises `InputError` without matplotlib or for an unknown suffix, `StorageError` if the path cannot be written.
        """
        check_path(path)
        parts = [p for p in self.parts if p.removals]
        figure = new_figure(9, 1.2 + ROW * max(1, len(parts)))
        axes = figure.subplots()
        for number, share in enumerate(self.shares):
            found = [(row, r) for row, p in enumerate(parts) for r in p.removals if r.share == share]
            found = [(row, r) for row, r in found if parts[row].kind == "units"]
            axes.scatter(
                [self.rise(r) for _, r in found],
                [row for row, _ in found],
                marker=_MARKERS[number % len(_MARKERS)],
                color=str(0.75 - 0.6 * number / max(1, len(self.shares) - 1)),  # of grey
                edgecolors="black",
                linewidths=0.5,
                label=f"{share:.0%} of the units",
            )
        sections = [(row, p.removals[0]) for row, p in enumerate(parts) if p.kind == "section"]
        if sections:
            rises = [self.rise(r) for _, r in sections]
            axes.scatter(rises, [row for row, _ in sections], marker="x", color="#b3261e", label="the section")
        axes.set_yticks(range(len(parts)), [p.name for p in parts], fontsize=8)
        axes.set_ylim(len(parts) - 0.4, -0.6)  # the first layer on top
        axes.axvline(0.0, color="grey", linewidth=0.8)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(f"growth of the loss, which is {self.loss:.3f} on {self.examples} examples", fontsize=9)
        figure.legend(loc="outside upper right", fontsize=8, frameon=False, ncols=len(self.shares) + 1)
        save_figure(figure, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. Raises `StorageError` if the path cannot be written."""
        write_json(path, asdict(self), "sensitivity")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Read what `save` wrote. Raises `StorageError` if the path cannot be read or holds something else."""
        return read_json(path, cls.of, "sensitivity", remedy=_REMEDY)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Sensitivity:
        """From the content of such a file. Raises `StorageError` for anything else."""
        return checked_content(lambda: cls._read(content), "sensitivity", remedy=_REMEDY)

    @classmethod
    def _read(cls, content: dict[str, Any]) -> Sensitivity:
        parts = tuple(
            PartSensitivity(
                str(p["name"]), _KINDS[p["kind"]], int(p["units"]), tuple(Removal(**r) for r in p["removals"])
            )
            for p in content["parts"]
        )
        shares = tuple(float(s) for s in content["shares"])
        accuracy = content["accuracy"]
        return cls(
            float(content["loss"]), None if accuracy is None else float(accuracy), content["examples"], shares, parts
        )


_KINDS: dict[str, Literal["units", "section"]] = {"units": "units", "section": "section"}
_MARKERS = ("o", "s", "D", "^", "v")


def print_sensitivity(found: Sensitivity, out: Console) -> None:
    """The table of a sensitivity; a row per group and section, in the order of the network."""
    right = "" if found.accuracy is None else f", accuracy {found.accuracy:.1%}"
    table = Table(title=f"growth of the loss, {found.loss:.3f} on {found.examples} examples{right}")
    table.add_column("group or section")
    for name in ("units", *(f"−{share:.0%}" for share in found.shares), "gone", "MACs saved"):
        table.add_column(name, justify="right")
    for part in found.parts:
        removals = {r.share: r for r in part.removals}
        shown = [f"{found.rise(removals[s]):+.3f}" if s in removals else "" for s in found.shares]
        gone = ""
        if part.kind == "section":
            shown = [""] * len(found.shares)
            gone = f"{found.rise(part.removals[0]):+.3f}" if part.removals else "kept"
        saved = f"{1 - part.removals[-1].macs:.1%}" if part.removals else ""
        table.add_row(part.name, str(part.units) if part.kind == "units" else "", *shown, gone, saved)
    table.caption = "each removed alone, without any training after it; MACs saved: by the last entry of a row"
    out.print(table)
