"""What ``onnxq`` offers, gathered from where it lies."""

from onnxq._version import __version__
from onnxq.comparison import Sweep, compare_recipes
from onnxq.conversion import convert
from onnxq.errors import (
    CalibrationError,
    InputError,
    OnnxqError,
    PassError,
    UnsupportedModel,
    UsageError,
)
from onnxq.evidence.evaluate import Comparison
from onnxq.evidence.report import Report
from onnxq.evidence.validation import validate
from onnxq.graph.loading import load
from onnxq.graph.model import Model
from onnxq.recipe import Recipe
from onnxq.samples.preprocess import Preprocess
from onnxq.spec import QParams, QuantSpec

__all__ = [
    "CalibrationError",
    "Comparison",
    "InputError",
    "Model",
    "OnnxqError",
    "PassError",
    "Preprocess",
    "QParams",
    "QuantSpec",
    "Recipe",
    "Report",
    "Sweep",
    "UnsupportedModel",
    "UsageError",
    "__version__",
    "compare_recipes",
    "convert",
    "load",
    "validate",
]
