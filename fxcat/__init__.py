"""fxcat: a graph-rewriting compiler pass that makes vision models smaller while they train."""

from fxcat import importance
from fxcat.api import add_bypasses, finalize, find_bypasses, prepare
from fxcat.controller import GateController
from fxcat.ddp import rewrap
from fxcat.distillation import distillation_loss
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
    VerificationError,
)
from fxcat.exporters.onnx_export import export_onnx
from fxcat.exporters.report import ExportReport
from fxcat.fit import EarlyStopping, fit
from fxcat.gated import GatedModule
from fxcat.gates import Gate
from fxcat.history import History
from fxcat.limits import Limits
from fxcat.loading import load
from fxcat.one_shot import one_shot, warm_start
from fxcat.passes.bypasses import Bypass, Bypasses
from fxcat.passes.verification import verify
from fxcat.recalibrate import recalibrate
from fxcat.records import Cost, Pressure, Target
from fxcat.storage import save
from fxcat.structure_plot import plot_structure
from fxcat.version import __version__

__all__ = [
    "Bypass",
    "Bypasses",
    "CaptureError",
    "Cost",
    "EarlyStopping",
    "ExportError",
    "ExportReport",
    "FxcatError",
    "Gate",
    "GateController",
    "GatedModule",
    "History",
    "InputError",
    "Limits",
    "NothingToPruneError",
    "PlanError",
    "Pressure",
    "StorageError",
    "Target",
    "TargetError",
    "TrainingError",
    "VerificationError",
    "__version__",
    "add_bypasses",
    "distillation_loss",
    "export_onnx",
    "finalize",
    "find_bypasses",
    "fit",
    "importance",
    "load",
    "one_shot",
    "plot_structure",
    "prepare",
    "recalibrate",
    "rewrap",
    "save",
    "verify",
    "warm_start",
]
