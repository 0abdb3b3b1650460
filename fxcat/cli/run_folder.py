"""The folder that a run leaves: what it was asked for, so that it can be repeated, and what came of it."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxcat.cli.models import channels_of, example_of, make_model
from fxcat.cli.settings import Settings
from fxcat.cli.toml_file import check_same, read_settings, write_settings
from fxcat.errors import InputError, StorageError
from fxcat.loading import load
from fxcat.report.record import Report, versions
from fxcat.utils.json_file import read_json, write_json


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Its files. `run.toml`: the settings, `run.json`: command and versions, `network.safetensors`: the small network,
    `report.json` and `report.html`: what became of it, `latency_table.json`: what its milliseconds are counted by,
    `checkpoints`: what an interrupted training goes on from."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "run.toml"

    @property
    def network_file(self) -> Path:
        return self.path / "network.safetensors"

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    @property
    def table_file(self) -> Path:
        return self.path / "latency_table.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def has_results(self) -> bool:
        """Whether a run came as far as leaving something; one that a mistake ended has not."""
        return self.network_file.exists() or any(self.checkpoints.glob("*"))

    @property
    def settings(self) -> Settings:
        """What the run was asked for. Raises `InputError` if this is no folder of a run."""
        if not self.settings_file.is_file():
            raise InputError(
                f"{self.path} is no folder of a run: it has no {self.settings_file.name}",
                remedy="give a folder that fxcat train or fxcat prune has made",
            )
        return read_settings(self.settings_file)

    @classmethod
    @contextmanager
    def begun(cls, path: Path | None, settings: Settings, *, again: bool = False) -> Generator[RunFolder]:
        """A folder for a run, with its settings in it; without `path` a new one below `runs`. `again`: it may be one of
        an earlier run, which was asked for the same. A run that an error ends before it has stored anything leaves the
        folder as it was. Raises `InputError` for a folder that may not be taken, `StorageError` if it cannot be made.
        """
        folder = cls(path or _free(Path("runs"), settings.model.name))
        folder._check_free(settings, again=again)
        made = [p for p in (folder.path, *folder.path.parents) if not p.exists()]
        files = [folder.settings_file, folder.path / "run.json", folder.table_file]
        before, stored = {file: _bytes_of(file) for file in files}, folder._stored()
        try:
            folder._begin(settings)
            yield folder
        except Exception:
            if folder._stored() == stored:
                _put_back(before, [folder.checkpoints, *made])
            raise

    def _check_free(self, settings: Settings, *, again: bool) -> None:
        """Raise `InputError` for a folder with another run in it, or with settings that no run has written."""
        if again:
            check_same(self.settings, settings, str(self.path))
        elif self.has_results:
            raise InputError(
                f"{self.path} has a run in it already",
                remedy="give another --out, or remove it; a training goes on by fxcat train --resume",
            )
        elif self.settings_file.exists() and not (self.path / "run.json").exists():
            raise InputError(
                f"{self.settings_file} is of no run, and would be replaced by the settings of this one",
                remedy="give another --out, or give the file another name",
            )

    def _begin(self, settings: Settings) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder cannot be made: {error}", where=str(self.path), remedy="give another --out"
            ) from error
        write_settings(settings, self.settings_file)
        facts = {"command": command(), "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "versions": versions()}
        self.write("run.json", facts)

    def _stored(self) -> dict[Path, int]:
        """What a run has left in it, and when."""
        files = (self.network_file, self.report_file, *self.checkpoints.glob("*"))
        return {file: file.stat().st_mtime_ns for file in files if file.exists()}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file of JSON. Raises `StorageError`."""
        write_json(self.path / name, content, "file")

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of a file of JSON; None if there is none. Raises `StorageError`."""
        path = self.path / name
        if not path.exists():
            return None
        return read_json(path, dict[str, Any], "results", remedy=f"measure again, without {name}")

    def put(self, report: Report) -> Path:
        """Write a report as JSON and as a page, whose path is returned."""
        report.save(self.report_file)
        page = self.path / "report.html"
        report.html(page)
        return page

    def dense(self, settings: Settings) -> nn.Module:
        """The model as it was before, with the values that it is made with."""
        example = example_of(settings.data, channels_of(settings.model)) if settings.model.bypasses else None
        return make_model(settings.model, example, weights=False)

    def small(self) -> nn.Module:
        """The small network, in `eval()`."""
        settings = self.settings
        self.check_ended(self.network_file)
        return load(self.network_file, self.dense(settings)).eval()

    def check_ended(self, file: Path) -> None:
        """Raise `InputError` without a file that a run leaves at its end."""
        if not file.is_file():
            raise InputError(
                f"{self.path} has no {file.name}: its run has not ended",
                remedy=f"go on with it by fxcat train --resume --out {shlex.quote(str(self.path))}",
            )


def command() -> str:
    """The command as it was given."""
    return shlex.join(["fxcat", *sys.argv[1:]])


def file_name_of(model: str) -> str:
    """The name of a model without its package, as files are named."""
    return re.sub(r"[^\w.-]+", "-", model.rpartition(":")[2]) or "model"


def _bytes_of(file: Path) -> bytes | None:
    """The content of a file; None if there is none."""
    return file.read_bytes() if file.is_file() else None


def _put_back(before: dict[Path, bytes | None], made: list[Path]) -> None:
    """Files as they were, and without the folders that were made, if nothing else is in them."""
    with suppress(OSError):
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
    for folder in made:
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()


def _free(parent: Path, model: str) -> Path:
    """The first that is free of model-1, model-2, …"""
    stem = file_name_of(model)
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
