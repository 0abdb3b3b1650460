"""fxcat: a graph-rewriting compiler pass that makes vision models smaller while they train."""

from fxcat.api import add_bypasses, finalize, find_bypasses, prepare
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
from fxcat.exporters.source.export import SourceReport, export_source
from fxcat.exporters.timing.latency_table import LatencyTable
from fxcat.gate_training.controller import GateController
from fxcat.gated import GatedModule
from fxcat.hub.config import Architecture
from fxcat.hub.folder import load_folder, save_folder
from fxcat.loading import kept_indices, load
from fxcat.named_models import named_model
from fxcat.network.ddp import rewrap
from fxcat.network.gates import Gate
from fxcat.network.limits import Limits
from fxcat.network.origin import KeptIndices
from fxcat.passes.bypasses.place import Bypass, Bypasses
from fxcat.passes.verification import verify
from fxcat.records import Cost, Pressure, Target
from fxcat.report.record import Report
from fxcat.scores import importance
from fxcat.scores.one_shot import one_shot, warm_start
from fxcat.scores.sensitivity import sensitivity
from fxcat.scores.sensitivity_result import PartSensitivity, Removal, Sensitivity
from fxcat.storage import save
from fxcat.structure_plot import plot_structure
from fxcat.training.batch_norm_statistics import recalibrate
from fxcat.training.distillation import distillation_loss
from fxcat.training.fit import EarlyStopping, fit
from fxcat.training.history import History
from fxcat.version import __version__

__all__ = [
    "Architecture",
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
    "KeptIndices",
    "LatencyTable",
    "Limits",
    "NothingToPruneError",
    "PartSensitivity",
    "PlanError",
    "Pressure",
    "Removal",
    "Report",
    "Sensitivity",
    "SourceReport",
    "StorageError",
    "Target",
    "TargetError",
    "TrainingError",
    "VerificationError",
    "__version__",
    "add_bypasses",
    "distillation_loss",
    "export_onnx",
    "export_source",
    "finalize",
    "find_bypasses",
    "fit",
    "importance",
    "kept_indices",
    "load",
    "load_folder",
    "named_model",
    "one_shot",
    "plot_structure",
    "prepare",
    "recalibrate",
    "rewrap",
    "save",
    "save_folder",
    "sensitivity",
    "verify",
    "warm_start",
]
