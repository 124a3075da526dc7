"""ONNX graphs as differentiable torch modules. Needs torch, which onnxq itself does without."""

import onnxq.lowering.activations
import onnxq.lowering.attention
import onnxq.lowering.elementwise
import onnxq.lowering.linear
import onnxq.lowering.normalization
import onnxq.lowering.quantization
import onnxq.lowering.reductions
import onnxq.lowering.resize
import onnxq.lowering.sampling
import onnxq.lowering.selection
import onnxq.lowering.tensors
import onnxq.lowering.windows  # noqa: F401  (they register the operators)
from onnxq.lowering.module import Lowered as Lowered
from onnxq.lowering.registry import Refused as Refused
