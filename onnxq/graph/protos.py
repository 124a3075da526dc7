"""ONNX protobufs before they become a graph, and what has to be kept aside while they are one.

graphsurgeon drops metadata, documentation and some attribute kinds, loses sparse initializers and
loads external data eagerly; the functions here prepare a protobuf so that nothing of it is lost.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, TensorProto, external_data_helper, numpy_helper

from onnxq.errors import InputError
from onnxq.spec import Array

_CARRIED = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR,
    AttributeProto.GRAPH, AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip


# Attributes of a Constant that spell numbers by themselves.
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32,
            "value_int": np.int64, "value_ints": np.int64}  # fmt: skip
# Keys under which torch's and onnxscript's exporters record where a node comes from.
_TRACES = ("namespace", "pkg.onnxscript.", "pkg.torch.")


@dataclass
class Aside:
    """What graphsurgeon drops, kept by name and put back on export.

    Attributes:
        header: The model without its graph.
        values: Inputs and outputs.
        nodes: Of nodes, what they have besides what they compute.
        names: Every tensor and node of the file, also those that passes remove.
    """

    header: ModelProto
    values: dict[str, onnx.ValueInfoProto]
    nodes: dict[str, onnx.NodeProto]
    names: frozenset[str]


def set_aside(proto: ModelProto) -> Aside:
    """Collect what an import drops; attributes graphsurgeon cannot read leave the nodes."""
    header = ModelProto(
        ir_version=proto.ir_version, domain=proto.domain, model_version=proto.model_version,
        doc_string=proto.doc_string, producer_name=proto.producer_name,
        producer_version=proto.producer_version,
    )  # fmt: skip
    header.graph.doc_string = proto.graph.doc_string
    header.graph.metadata_props.extend(proto.graph.metadata_props)
    name_nodes(proto.graph)
    nodes: dict[str, onnx.NodeProto] = {}
    names = {t.name for t in (*proto.graph.input, *proto.graph.initializer)}
    for node in all_nodes(proto.graph):
        names.update((node.name, *node.input, *node.output))
        strange = take_unreadable(node)
        if strange or node.doc_string or node.metadata_props:
            kept = nodes[node.name] = onnx.NodeProto(op_type=node.op_type)
            kept.doc_string = node.doc_string
            kept.metadata_props.extend(node.metadata_props)
            kept.attribute.extend(strange)
    values: dict[str, onnx.ValueInfoProto] = {}
    for info in itertools.chain(proto.graph.input, proto.graph.output):
        values[info.name] = onnx.ValueInfoProto()
        values[info.name].CopyFrom(info)
    return Aside(header, values, nodes, frozenset(names))


def take_unreadable(node: onnx.NodeProto) -> list[AttributeProto]:
    """Take the attributes that graphsurgeon cannot read off a node."""
    taken = [a for a in node.attribute if not _readable(a)]
    rest = [a for a in node.attribute if _readable(a)]
    del node.attribute[:]
    node.attribute.extend(rest)
    return taken


def without_traces(nodes: dict[str, onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Copies of what was set aside of nodes, without exporters' records of their origin."""
    kept: dict[str, onnx.NodeProto] = {}
    for name, node in nodes.items():
        rest = kept[name] = onnx.NodeProto()
        rest.CopyFrom(node)
        del rest.metadata_props[:]
        rest.metadata_props.extend(p for p in node.metadata_props if not p.key.startswith(_TRACES))
    return kept


def _readable(attribute: AttributeProto) -> bool:
    """Whether graphsurgeon carries this attribute through a round trip."""
    if attribute.type not in _CARRIED:
        return False
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the subgraphs in their attributes."""
    pending = [graph]
    while pending:
        for node in pending.pop().node:
            yield node
            pending += [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]


def texts(message: Message) -> Iterator[str | bytes]:
    """All text in a protobuf; what is not UTF-8 comes as bytes."""
    for field, value in message.ListFields():
        several = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING:
            yield from several
        elif field.type == field.TYPE_MESSAGE:
            for inner in several:
                yield from texts(inner)


def reads(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors that a node and its subgraphs read, those of the subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            names.update(*(inner.input for inner in all_nodes(attribute.g)))
    return names - {""}


def part(
    proto: ModelProto,
    nodes: Collection[str],
    held: Mapping[str, Sequence[Array]],
    fixed: Mapping[str, Array],
    wanted: Collection[str],
) -> ModelProto:
    """Some nodes of a model as a model of their own.

    Args:
        proto: The whole.
        nodes: Names of the nodes.
        held: Tensors that may become inputs, each with arrays of the type they will have.
        fixed: Tensors that become initializers; they win over nodes, inputs and initializers.
        wanted: Tensors that become outputs, if the nodes make them.
    """
    piece = ModelProto(ir_version=proto.ir_version, functions=proto.functions)
    piece.opset_import.extend(proto.opset_import)
    graph = piece.graph
    graph.name = proto.graph.name
    graph.node.extend(node for node in proto.graph.node if node.name in nodes)
    read = set[str]().union(*map(reads, graph.node))
    for name in sorted(read & fixed.keys()):
        graph.initializer.append(numpy_helper.from_array(fixed[name], name))
    graph.initializer.extend(t for t in proto.graph.initializer if t.name in read - fixed.keys())
    stored = {t.name for t in graph.initializer}
    for name in sorted(read & held.keys() - stored):
        kind = onnx.helper.np_dtype_to_tensor_dtype(held[name][0].dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    made = [name for node in graph.node for name in node.output if name in wanted]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in fixed)
    return piece


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: nameless ones after their first output."""
    taken: set[str] = set()
    for node in all_nodes(graph):
        wish = node.name or f"{node.op_type}_{next((o for o in node.output if o), 'sink')}"
        node.name = next(n for n in numbered(wish) if n not in taken)
        taken.add(node.name)


def numbered(wish: str) -> Iterator[str]:
    """``wish``, ``wish_1``, ``wish_2``, ... without end."""
    return itertools.chain([wish], (f"{wish}_{i}" for i in itertools.count(1)))


def open_sizes(graph: onnx.GraphProto) -> None:
    """Leave open the sizes that an exporter wrote as -1: shape inference would reckon with them."""
    for value in itertools.chain(graph.input, graph.output, graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                size.Clear()


def densify(graph: onnx.GraphProto) -> None:
    """Turn sparse initializers, which graphsurgeon loses, into dense ones."""
    for sparse in graph.sparse_initializer:
        values, indices = (
            numpy_helper.to_array(sparse.values),
            numpy_helper.to_array(sparse.indices),
        )
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def hold_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, but for outputs and those of strings and sparse ones.

    Weights are then weights, however an exporter spelled them. Bodies keep their own.
    """
    outputs, held = {value.name for value in graph.output}, []
    for place, node in enumerate(graph.node):
        for body in (a.g for a in node.attribute if a.HasField("g")):
            hold_constants(body)
        if node.op_type != "Constant" or node.domain or {*node.output} <= outputs:
            continue
        given = node.attribute[0] if node.attribute else AttributeProto()
        if given.name == "value" and given.t.data_type != TensorProto.STRING:
            tensor = given.t
        elif given.name in _NUMBERS:
            value = np.asarray(onnx.helper.get_attribute_value(given), _NUMBERS[given.name])
            tensor = numpy_helper.from_array(value)
        else:
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        held.append(place)
    for place in reversed(held):
        del graph.node[place]


def hold_once(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Let the graph alone hold initializers of these names, of which bodies have copies."""
    held = {tensor.name for tensor in graph.initializer}
    for body in (a.g for node in all_nodes(graph) for a in node.attribute if a.HasField("g")):
        for place in reversed(range(len(body.initializer))):
            tensor = body.initializer[place]
            if tensor.name in names:
                if tensor.name not in held:
                    graph.initializer.append(tensor)
                    held.add(tensor.name)
                del body.initializer[place]


def attach_external(proto: ModelProto, path: Path) -> None:
    """Make external references absolute and check them; small oddities are read at once."""
    held = list(proto.graph.initializer)  # keeps the wrappers, and so their ids, alive
    top = {id(t) for t in held}
    for tensor in external_data_helper._get_all_tensors(proto):
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        file = path.parent / info.location
        inside = file.resolve().is_relative_to(path.parent.resolve())
        trouble = None
        if not inside:
            trouble = "lies outside the folder of the model"
        elif not file.is_file():
            trouble = "is missing"
        elif file.stat().st_size < (info.offset or 0) + max(info.length or 0, _extent(tensor)):
            trouble = "is truncated"
        if trouble is not None:
            raise InputError(f"{path}: its external data file {info.location} {trouble}")
        if id(tensor) in top and _mappable(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(file.resolve())
        else:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _mappable(tensor: TensorProto) -> bool:
    """Whether the bytes on disk are the array: not packed, not text."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return dtype.isbuiltin == 1 and dtype.kind != "O"


def _extent(tensor: TensorProto) -> int:
    """Bytes that mapping a tensor reads, whatever length its file claims; 0 if it is not mapped."""
    itemsize = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return math.prod(tensor.dims) * itemsize if _mappable(tensor) else 0


def mapped(tensor: TensorProto) -> Array:
    """The array of an external tensor with an absolute location, mapped from disk, not read."""
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(info.location, dtype, "r", offset=info.offset or 0, shape=shape)


def check_file(path: Path) -> str | None:
    """What onnx's checker, shape inference included, has to say against a file; None if nothing."""
    return _complaint(str(path), full_check=True)


def check_proto(proto: ModelProto, full_check: bool = False) -> str | None:
    """What onnx's checker, in full with shape inference, says against a model; None if nothing."""
    return _complaint(proto, full_check)


def _complaint(model: str | ModelProto, full_check: bool = False) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=full_check)
    except Exception as complaint:
        return " ".join(str(complaint).split())[:300]
    return None


def keep_names(before: ModelProto, after: ModelProto) -> None:
    """Call a node what the one was called that made its first result: users know it by that."""
    names = {name: node.name for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        node.name = names.get(node.output[0], node.name)


def file_size(path: Path) -> int:
    """Bytes of a model on disk, its external data files included."""
    places = _outside(onnx.load(path, load_external_data=False))
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in places)))


def model_files(path: Path) -> list[Path]:
    """A model and what is read with it: external data, and the preprocessing beside it."""
    files = [path, path.parent / f"{path.stem}.preprocess.toml"]
    if not path.is_file():  # a pipe would be read without end
        return files
    try:
        places = _outside(ModelProto.FromString(path.read_bytes()))
    except (OSError, ValueError, DecodeError):  # whoever loads it says what is wrong with it
        return files
    return files + [path.parent / place for place in sorted(places)]


def _outside(proto: ModelProto) -> set[str]:
    """Places of external data, relative to the model."""
    return {
        external_data_helper.ExternalDataInfo(tensor).location
        for tensor in external_data_helper._get_all_tensors(proto)
        if external_data_helper.uses_external_data(tensor)
    }
