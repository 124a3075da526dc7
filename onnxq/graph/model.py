"""An ONNX model in memory: a graphsurgeon graph and everything graphsurgeon forgets.

This file contains graphsurgeon's traps: it drops metadata, documentation, model version and some
attribute kinds, stamps an IR version onnxruntime refuses, cannot pack 4-bit constants once their
values were read, accepts two tensors of one name and sorts recursively. What it drops is kept aside
(protos.py) and put back; the rest is done here instead.
"""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, inliner, numpy_helper, version_converter
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.errors import InputError, UnsupportedModel
from onnxq.files import check_writable, data_file, replacing
from onnxq.graph.exchange import external, import_graph, placeholder, reunite
from onnxq.graph.opset import obstacle, restore
from onnxq.graph.protos import (
    Aside,
    all_nodes,
    hold_once,
    numbered,
    take_unreadable,
    without_traces,
)
from onnxq.graph.tensors import reads, size_of
from onnxq.spec import Array, Floats, QParams, QTensor

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR

# Protobuf stops at 2 GiB; above this the weights go to a data file beside the model.
INLINE_LIMIT = 3 * 2**29
# Tensors smaller than this stay in the model file even when the weights do not.
EXTERNAL_MIN = 1024
# Below the first, initializers have to be graph inputs as well, which passes do not keep up; the
# second is the newest that every supported onnxruntime (>= 1.23) reads, and opset 21 needs it.
MIN_IR, MAX_IR = 4, 10


@dataclass
class Model:
    """A mutable model. Passes edit ``graph`` and fill in the quantization plan.

    Attributes:
        graph: The graphsurgeon graph; every node in it has a unique name.
        path: Where the model was loaded from, if it was.
        notes: What had to be done to read the model, one sentence each.
        weights: Plan: layer name to its integer weight.
        activations: Plan: tensor name to its grid.
        tables: Plan: name of a constant that is no layer's weight, and has the values of its codes,
            to these.
        kept_float: Plan: node name to the reason why it stays float.
        moments: Tensor name to mean and standard deviation of its channels along axis 1, each
            float64 (channels,), in the float model on its training data, where a batch
            normalization told them. A pass that changes the channels of a tensor keeps this up.
        filled: Layer name to how many of its output channels are zeros that a pass added.
        metadata: The file's ``metadata_props``.
    """

    graph: gs.Graph
    aside: Aside
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    weights: dict[str, QTensor] = field(default_factory=dict)
    activations: dict[str, QParams] = field(default_factory=dict)
    tables: dict[str, QTensor] = field(default_factory=dict)
    kept_float: dict[str, str] = field(default_factory=dict)
    moments: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    # -- reading the graph ---------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.graph.opset)

    @property
    def nbytes(self) -> int:
        """Bytes of all constants, as they lie in memory."""
        return sum(size_of(c) for c in self.constants())

    def nodes(self) -> list[gs.Node]:
        """Every node of the graph and of the bodies in it."""
        bodies = [self.graph, *self.graph.subgraphs(recursive=True)]
        return [node for body in bodies for node in body.nodes]

    def constants(self) -> list[gs.Constant]:
        """The distinct constants of the main graph, in order of first use."""
        inputs = itertools.chain.from_iterable(node.inputs for node in self.graph.nodes)
        outputs = iter(self.graph.outputs)
        found = (t for t in itertools.chain(inputs, outputs) if isinstance(t, gs.Constant))
        return list({id(t): t for t in found}.values())

    def inner_constants(self) -> list[gs.Constant]:
        """The distinct constants that the bodies in the graph alone read, in order of first use."""
        bodies = self.graph.subgraphs(recursive=True)
        inputs = [t for body in bodies for node in body.nodes for t in node.inputs]
        found = {id(t): t for t in inputs if isinstance(t, gs.Constant)}
        known = {id(t) for t in self.constants()}
        return [constant for key, constant in found.items() if key not in known]

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` leaves the graph."""
        return any(tensor is out for out in self.graph.outputs)

    def captured(self) -> set[str]:
        """Names of the tensors that the bodies of control flow nodes read."""
        bodies = self.graph.subgraphs(recursive=True)
        return {t.name for body in bodies for node in body.nodes for t in node.inputs}

    def single_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The only reader of ``tensor``; None if there are several or it leaves the graph."""
        if len(tensor.outputs) != 1 or self.is_output(tensor):
            return None
        return tensor.outputs[0]

    def names(self) -> set[str]:
        """Every tensor and node name, subgraphs and functions included; built once per graph."""
        known: tuple[gs.Graph, set[str]] | None = vars(self).get("_known_names")
        if known is None or known[0] is not self.graph:
            bodies = [self.graph, *self.graph.subgraphs(recursive=True)]
            names = {t.name for body in bodies for t in (*body.inputs, *body.outputs)}
            for node in self.nodes():
                names.add(node.name)
                names.update(t.name for t in itertools.chain(node.inputs, node.outputs))
            known = (self.graph, names)
            self._known_names = known
        return known[1]

    def fresh(self, wish: str) -> str:
        """A name no tensor or node of the model has, as close to ``wish`` as can be."""
        taken = self.names()
        name = next(n for n in numbered(wish) if n not in taken)
        taken.add(name)
        return name

    # -- editing the graph ---------------------------------------------------------------------

    def constant(self, wish: str, values: Array) -> gs.Constant:
        """A new constant; ml_dtypes' sub-byte dtypes are packed as ONNX packs them."""
        name = self.fresh(wish)
        if values.dtype in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2):
            return gs.Constant(name, LazyValues(numpy_helper.from_array(values, name)))
        return gs.Constant(name, np.ascontiguousarray(values).reshape(values.shape))

    def variable(self, wish: str) -> gs.Variable:
        """A new tensor without a producer."""
        return gs.Variable(self.fresh(wish))

    def add(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        *outputs: gs.Tensor,
        name: str | None = None,
        **attrs: Any,
    ) -> gs.Node:
        """Append a node; ``tidy`` puts it in its place."""
        label = self.fresh(name or f"{outputs[0].name}_{op}")
        node = gs.Node(op, label, attrs, inputs=list(inputs), outputs=list(outputs))
        self.graph.nodes.append(node)
        return node

    def shorten(self, kept: Collection[str]) -> None:
        """Give tensors and nodes that are not ``kept`` names of a few letters.

        A tensor is named by its maker and by each of its readers: where layers are thin, names
        outweigh weights. What enters or leaves the graph, and what bodies name, keeps its name; no
        new name is one of the file that the model came from.
        """
        ends = [*self.graph.inputs, *self.graph.outputs]
        known = {*kept, *self.captured(), *(tensor.name for tensor in ends)}
        taken = known | self.names() | self.aside.names
        short = (name for name in map("t{}".format, itertools.count()) if name not in taken)
        tensors = {id(t): t for node in self.graph.nodes for t in (*node.inputs, *node.outputs)}
        for item in (*tensors.values(), *self.graph.nodes):
            if item.name and item.name not in known:
                item.name = next(short)
        vars(self).pop("_known_names", None)

    def redirect(self, old: gs.Tensor, new: gs.Tensor, but: Iterable[gs.Node] = ()) -> None:
        """Let every reader of ``old`` read ``new`` instead, except the nodes in ``but``."""
        kept = {id(node) for node in but}
        for node in list(old.outputs):
            if id(node) not in kept:
                for i, tensor in enumerate(node.inputs):
                    if tensor is old:
                        node.inputs[i] = new

    def bypass(self, node: gs.Node) -> bool:
        """Remove a node that hands its first input on; False if the graph's signature forbids it.

        The tensor that survives keeps the name the outside knows: an output's name wins.
        """
        source, result = node.inputs[0], node.outputs[0]
        if self.is_output(result):
            if isinstance(source, gs.Constant) or not source.inputs or self.is_output(source):
                return False
            producer = source.inputs[0]
            node.inputs.clear()
            node.outputs.clear()
            producer.outputs[[id(t) for t in producer.outputs].index(id(source))] = result
            self.redirect(source, result)
        else:
            node.inputs.clear()
            node.outputs.clear()
            self.redirect(result, source)
        return True

    def become_constant(self, node: gs.Node, values: Array) -> bool:
        """Replace a node by the value of its first output; False if that leaves the graph."""
        result = node.outputs[0]
        if self.is_output(result):
            return False
        node.inputs.clear()
        node.outputs.clear()
        constant = gs.Constant(result.name, np.ascontiguousarray(values).reshape(values.shape))
        self.redirect(result, constant)
        return True

    def shapes(self, *, propagated: bool = False) -> dict[str, tuple[int | None, ...]]:
        """Shapes of the tensors ONNX's shape inference can tell, None for a size that is open.

        What the model declares may be wrong, but for its inputs: if ``propagated``, it does not
        count, and sizes are followed through what is computed from them.
        """
        with self._referred(placeholder):
            proto = self.to_proto()
        if propagated:
            del proto.graph.value_info[:]
        try:
            graph = onnx.shape_inference.infer_shapes(proto, data_prop=propagated).graph
        except Exception:
            return {}
        declared = () if propagated else graph.output
        known = itertools.chain(graph.value_info, graph.input, declared)
        return {
            v.name: tuple(
                d.dim_value if d.HasField("dim_value") else None
                for d in v.type.tensor_type.shape.dim
            )
            for v in known
            if v.type.tensor_type.HasField("shape")
        }

    def ranks(self) -> dict[str, int]:
        """Number of axes of the tensors of ``shapes``."""
        return {name: len(shape) for name, shape in self.shapes().items()}

    def drop_traces(self) -> int:
        """Forget where in a program each node came from; the number of bytes that saves."""
        before, after = self.aside.nodes, without_traces(self.aside.nodes)
        self.aside = replace(self.aside, nodes=after)
        return sum(before[name].ByteSize() - after[name].ByteSize() for name in before)

    def tidy(self) -> None:
        """Drop nodes nobody reads and sort the others topologically, near their old order.

        Moments of tensors that are gone are forgotten: a name may come back.

        Raises:
            InputError: The graph has a cycle.
        """
        nodes = self.graph.nodes
        alive: set[int] = set()
        wanted = [t.inputs[0] for t in self.graph.outputs if t.inputs]
        while wanted:
            node = wanted.pop()
            if id(node) not in alive:
                alive.add(id(node))
                wanted += [t.inputs[0] for t in reads(node) if t.inputs]
        for node in [n for n in nodes if id(n) not in alive]:
            node.inputs.clear()
            node.outputs.clear()
        here = {id(node) for node in nodes}
        done: set[int] = set()
        entered: set[int] = set()
        ordered: list[gs.Node] = []
        for root in (n for n in nodes if id(n) in alive):
            stack = [(root, False)]
            while stack:
                node, ready = stack.pop()
                if id(node) in done or id(node) not in here:
                    continue
                if ready:
                    done.add(id(node))
                    ordered.append(node)
                    continue
                if id(node) in entered:
                    raise InputError(f"{self.path or 'the model'}: has a cycle at {node.name}")
                entered.add(id(node))
                stack.append((node, True))
                stack += [(t.inputs[0], False) for t in reversed(reads(node)) if t.inputs]
        self.graph.nodes = ordered
        left = {t.name for node in ordered for t in (*node.inputs, *node.outputs)}
        self.moments = {name: m for name, m in self.moments.items() if name in left}

    def clone(self) -> "Model":
        """An independent graph over the same, shared weight arrays."""
        graph = self.graph.copy()
        reunite(graph)
        return Model(
            graph, self.aside, self.path, list(self.notes), dict(self.weights),
            dict(self.activations), dict(self.tables), dict(self.kept_float), dict(self.moments),
            dict(self.filled), dict(self.metadata),
        )  # fmt: skip

    def replace_by(self, proto: ModelProto, held: Mapping[str, Any] | None = None) -> None:
        """Take over a graph that a tool outside made of this one, keeping what it lost.

        Args:
            proto: What the tool made.
            held: Values of tensors that ``proto`` holds placeholders for.
        """
        for node in all_nodes(proto.graph):
            take_unreadable(node)
        self.graph = import_graph(proto, held)

    def raise_opset(self, version: int) -> None:
        """Raise the default opset with ONNX's official converter; no-op if it is high enough.

        Raises:
            UnsupportedModel: The converter has no way from here to there.
        """
        before = self.opset
        if before >= version:
            return
        cannot, instead = (
            f"opset {before} cannot be raised to {version}",
            f"export the model again with opset {version} or newer",
        )
        called = (node for function in self.graph.functions for node in function.nodes)
        if (reason := obstacle([*self.nodes(), *called], before, version)) is not None:
            raise UnsupportedModel(f"{cannot} ({reason}): {instead}")
        try:
            with self._referred(placeholder) as held:
                # The converter drops functions: their bodies take the place of the calls first.
                inlined = inliner.inline_local_functions(self.to_proto(), convert_version=True)
            raised = version_converter.convert_version(inlined, version)
        except Exception as cause:
            reason = str(cause).strip().splitlines()[-1].rpartition(" failed: ")[2]
            raise UnsupportedModel(f"{cannot} ({reason}): {instead}") from cause
        self.replace_by(raised, held)
        self.notes += restore(self.nodes(), before, version)
        self.notes.append(f"opset raised from {before} to {version}")

    # -- writing -------------------------------------------------------------------------------

    def to_proto(self) -> ModelProto:
        """The model as one protobuf, weights inline."""
        proto: ModelProto = gs.export_onnx(self.graph, do_type_check=False)
        hold_once(proto.graph, self._shared_with_bodies())
        aside = self.aside
        header = aside.header
        proto.domain, proto.model_version = header.domain, header.model_version
        proto.producer_name, proto.producer_version = header.producer_name, header.producer_version
        proto.doc_string = header.doc_string
        proto.graph.doc_string = header.graph.doc_string
        proto.graph.metadata_props.extend(header.graph.metadata_props)
        for key, value in self.metadata.items():
            proto.metadata_props.add(key=key, value=value)
        for info in itertools.chain(proto.graph.input, proto.graph.output):
            if info.name in aside.values:
                info.CopyFrom(aside.values[info.name])
        for node in all_nodes(proto.graph):
            if (lost := aside.nodes.get(node.name)) is not None:
                if lost.doc_string:
                    node.doc_string = lost.doc_string
                node.metadata_props.extend(lost.metadata_props)
                if node.op_type == lost.op_type:
                    node.attribute.extend(lost.attribute)
        needed = onnx.helper.find_min_ir_version_for(proto.opset_import, True)
        proto.ir_version = min(max(header.ir_version, needed, MIN_IR), MAX_IR)
        return proto

    def _shared_with_bodies(self) -> set[str]:
        """Names of the constants that several graphs read, the model's and those of bodies.

        Not of those that a body returns, nor names that mean something else in another body.
        """
        graphs = [self.graph, *self.graph.subgraphs(recursive=True)]
        meant: dict[str, set[int]] = {}
        count = Counter[int]()
        found: dict[int, gs.Tensor] = {}
        for graph in graphs:
            held = [t for node in graph.nodes for t in (*node.inputs, *node.outputs)]
            here = {id(t): t for t in (*held, *graph.inputs, *graph.outputs)}
            count.update(here.keys())
            found |= here
        for key, tensor in found.items():
            meant.setdefault(tensor.name, set()).add(key)
        returned = {t.name for body in graphs[1:] for t in body.outputs}
        shared = [t for key, t in found.items() if isinstance(t, gs.Constant) and count[key] > 1]
        return {t.name for t in shared if len(meant[t.name]) == 1} - returned

    def to_bytes(self) -> bytes:
        """Serialized protobuf with the weights inline; the same model gives the same bytes."""
        return bytes(self.to_proto().SerializeToString(deterministic=True))

    def digest(self) -> str:
        """SHA-256 of ``to_proto``, piece by piece: one protobuf cannot hold every model's bytes."""
        proto, hasher = self.to_proto(), hashlib.sha256()
        graph = proto.graph
        for part in (*graph.input, *graph.node, *graph.initializer, *graph.output):
            hasher.update(part.SerializeToString(deterministic=True))
        proto.ClearField("graph")
        hasher.update(proto.SerializeToString(deterministic=True))
        return hasher.hexdigest()

    def save(self, path: Path, force: bool = False) -> None:
        """Write the model; nothing appears under ``path`` until all of it is written.

        Above ``INLINE_LIMIT`` the weights go to ``path`` + ".data", streamed from where they lie.

        Raises:
            UsageError: ``path`` is the file the model came from, or exists and ``force`` is off, or
                its folder is missing.
        """
        check_writable(path, self.path, force)
        if self.nbytes <= INLINE_LIMIT:
            with replacing(path) as temporary:
                temporary.write_bytes(self.to_bytes())
            return
        data = data_file(path)
        check_writable(data, None, force)
        with replacing(path) as temporary, replacing(data) as temporary_data:
            with (
                temporary_data.open("wb") as sink,
                self._referred(lambda constant: external(constant, sink, data.name)),
            ):
                proto = self.to_proto()
            temporary.write_bytes(proto.SerializeToString(deterministic=True))

    @contextlib.contextmanager
    def _referred(self, refer: Callable[[gs.Constant], TensorProto]) -> Iterator[dict[str, Any]]:
        """Until exit, the large constants export as what ``refer`` makes of them.

        Yields their values by name.
        """
        large = [c for c in self.constants() if size_of(c) >= EXTERNAL_MIN]
        held = {constant.name: constant._values for constant in large}
        try:
            for constant in large:
                constant._values = LazyValues(refer(constant))
            yield held
        finally:
            for constant in large:
                constant._values = held[constant.name]
