"""From an ONNX file, or a protobuf, to a model."""

import mmap
import os
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from onnxq.errors import InputError
from onnxq.files import check_model_path
from onnxq.graph.exchange import import_graph
from onnxq.graph.model import MAX_IR, Model
from onnxq.graph.protos import attach_external, open_sizes, set_aside, texts


def load(path: str | os.PathLike[str]) -> Model:
    """Read an ONNX file, with external data left on disk until it is used.

    Raises:
        UsageError: The path is not UTF-8.
        InputError: The file is missing, truncated or not ONNX, a text in it is not UTF-8, or its
            external data are missing, truncated or outside the model's folder.
        UnsupportedModel: The file holds no runnable graph.
    """
    path = Path(path)
    check_model_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    proto = ModelProto()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as window,
        ):
            proto.ParseFromString(window)
    except (DecodeError, ValueError) as cause:  # an empty file cannot be mapped
        raise InputError(f"{path}: not an ONNX model, or truncated") from cause
    if not proto.graph.node or not proto.opset_import:
        raise InputError(f"{path}: not an ONNX model, or one without a graph")
    if (odd := next((t for t in texts(proto) if isinstance(t, bytes)), None)) is not None:
        raise InputError(
            f"{path}: {odd[:80]!r} in it is not UTF-8: export it again with other names"
        )
    attach_external(proto, path)
    return from_proto(proto, path)


def from_proto(proto: ModelProto, path: Path | None = None) -> Model:
    """A model over ``proto``, which from then on belongs to it."""
    notes = []
    if proto.ir_version > MAX_IR:
        notes.append(f"IR version lowered from {proto.ir_version} to {MAX_IR}")
    metadata = {p.key: p.value for p in proto.metadata_props}
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx":
            opset.domain = ""
    open_sizes(proto.graph)
    aside = set_aside(proto)
    return Model(import_graph(proto), aside, path, notes, metadata=metadata)
