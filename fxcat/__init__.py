"""fxcat: a graph-rewriting compiler pass that makes vision models smaller while they train."""

from fxcat.api import finalize, prepare
from fxcat.controller import GateController
from fxcat.errors import (
    CaptureError,
    ExportError,
    FxcatError,
    InputError,
    NothingToPruneError,
    PlanError,
    StorageError,
    TargetError,
    TrainingError,
)
from fxcat.fit import fit
from fxcat.gated import GatedModule
from fxcat.gates import Gate
from fxcat.history import History
from fxcat.records import Cost, Pressure, Target

__all__ = [
    "CaptureError",
    "Cost",
    "ExportError",
    "FxcatError",
    "Gate",
    "GateController",
    "GatedModule",
    "History",
    "InputError",
    "NothingToPruneError",
    "PlanError",
    "Pressure",
    "StorageError",
    "Target",
    "TargetError",
    "TrainingError",
    "finalize",
    "fit",
    "prepare",
]
