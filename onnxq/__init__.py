"""onnxq makes ONNX vision models small and fast without retraining and without labels.

import onnxq

report = onnxq.convert("model.onnx", bits=4, oaq=True, calib="images/")
print(report.bytes / report.float_bytes, report.fidelity.agreement.percent)
"""

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
