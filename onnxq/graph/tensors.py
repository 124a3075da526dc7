"""What nodes and tensors of graphsurgeon tell of themselves."""

import itertools

import ml_dtypes
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues

# ONNX's codes of the element types passes name.
FLOAT, FLOAT16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
INT8, INT32 = int(TensorProto.INT8), int(TensorProto.INT32)


def reads(node: gs.Node) -> list[gs.Tensor]:
    """Inputs of a node and of everything inside its subgraphs."""
    inner = (n for body in node.subgraphs(recursive=True) for n in body.nodes)
    return [t for n in itertools.chain([node], inner) for t in n.inputs]


def size_of(constant: gs.Constant) -> int:
    """Bytes of a constant, told without reading them, which would spoil packed ones."""
    return int(constant._values.nbytes)


def element_bits(constant: gs.Constant) -> int:
    """Bits of an element, told without reading the values, which would spoil packed ones."""
    values = constant._values
    if isinstance(values, LazyValues):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(values.tensor.data_type)
    else:
        dtype = values.dtype
    return 8 * dtype.itemsize if dtype.kind == "f" else int(ml_dtypes.iinfo(dtype).bits)


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant."""
    return isinstance(tensor, gs.Constant)


def is_number(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a constant of one element, whatever its axes."""
    return isinstance(tensor, gs.Constant) and tensor.values.size == 1


def axes_of(node: gs.Node, place: int = 1) -> list[int] | None:
    """The constant axes of a node, whether attribute (old opsets) or the input at ``place``."""
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    if len(node.inputs) > place and isinstance(node.inputs[place], gs.Constant):
        return [int(a) for a in node.inputs[place].values]
    return None
