"""onnxq makes ONNX vision models small and fast without retraining and without labels.

import onnxq

report = onnxq.convert("model.onnx", bits=4, oaq=True, calib="images/")
print(report.bytes / report.float_bytes, report.fidelity.agreement.percent)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Import the library when it is asked for: before, a program may prepare for Ctrl-C."""
        return getattr(import_module("onnxq.api"), name)
