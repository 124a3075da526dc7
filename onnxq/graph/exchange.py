"""Between ONNX's protobufs and graphsurgeon's graphs, large values left where they lie."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.graph.protos import densify, hold_constants, mapped, name_nodes


def import_graph(proto: ModelProto, held: Mapping[str, Any] | None = None) -> gs.Graph:
    """Import with unique node names, dense constants, no nodes for these, and weights not read.

    Args:
        proto: Belongs to the graph from then on.
        held: Values of tensors that ``proto`` holds placeholders for.
    """
    name_nodes(proto.graph)
    densify(proto.graph)
    hold_constants(proto.graph)
    initializers = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in initializers]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    graph = gs.import_onnx(proto)
    graphs = [graph, *graph.subgraphs(recursive=True)]
    for tensor in [t for one in graphs for t in one.tensors().values()]:
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, LazyValues):
            source = tensor._values.tensor
            if source.data_location == TensorProto.EXTERNAL:
                tensor._values = held[tensor.name] if held else mapped(source)
                tensor.data_location = None
    return graph


def reunite(graph: gs.Graph) -> None:
    """Let bodies read the constant itself of which graphsurgeon gave each body a copy."""
    first: dict[tuple[str, int], gs.Constant] = {}
    for one in [graph, *graph.subgraphs(recursive=True)]:
        returned = {id(t) for t in one.outputs}
        for node in one.nodes:
            for place, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant) and id(tensor) not in returned:
                    same = first.setdefault((tensor.name, id(tensor._values)), tensor)
                    if same is not tensor:
                        node.inputs[place] = same


def placeholder(constant: gs.Constant) -> TensorProto:
    """A tensor of the constant's name, type and shape whose data are said to lie elsewhere."""
    values = constant._values
    if isinstance(values, LazyValues):
        data_type = values.tensor.data_type
    else:
        data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = TensorProto(name=constant.name, data_type=data_type, dims=list(values.shape))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="held")
    return tensor


def external(constant: gs.Constant, sink: Any, location: str) -> TensorProto:
    """Write a constant's bytes to ``sink`` and return a tensor that refers to them."""
    tensor, offset, values = placeholder(constant), sink.tell(), constant._values
    if isinstance(values, LazyValues):
        sink.write(values.tensor.raw_data or numpy_helper.to_array(values.tensor).tobytes())
    else:
        np.ascontiguousarray(values).tofile(sink)
    tensor.external_data[0].value = location
    for key, value in (("offset", offset), ("length", sink.tell() - offset)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
