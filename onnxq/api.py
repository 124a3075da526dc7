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
from onnxq.evaluate import Comparison
from onnxq.model import Model, load
from onnxq.preprocess import Preprocess
from onnxq.recipe import Recipe
from onnxq.report import Report
from onnxq.spec import QParams, QuantSpec
from onnxq.validation import validate

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
