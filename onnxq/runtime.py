"""The only file that runs models: onnxruntime sessions on the CPU, and what they optimize to."""

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnxq.errors import InputError
from onnxq.graph.model import INLINE_LIMIT, Model
from onnxq.spec import Array

Feeds = Mapping[str, Array]
T = TypeVar("T")
R = TypeVar("R")

# More would only cost memory: a batch is held for each.
MOST_WORKERS = 8

# Operators of the optimised graph that compute in integers, beyond those named QLinear...
INTEGER_KERNELS = {"QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"}

# Optimizers of onnxruntime that lose an output: that of a Gemm between two Transposes, or of one of
# two Convs that are added.
LOSING_OUTPUTS = ["GemmTransposeFusion", "ConvAddActivationFusion"]


@dataclass(frozen=True)
class Input:
    """A graph input: its name, dtype and shape, with None for every size left open."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None


class Session:
    """A model ready to run.

    Args:
        model: A model, the path of a file, or a protobuf, which has no taps.
        taps: Tensors to return besides the graph's outputs.
        optimize: False runs the graph as written, node by node.
        threads: Intra-op threads. One makes results independent of the machine; ``in_order`` uses
            the other cores.
        dump: Where to write the optimised graph.

    Raises:
        InputError: onnxruntime refuses the model, with onnxruntime's own message, or the name of an
            input or output is not UTF-8.
    """

    def __init__(
        self,
        model: Model | Path | onnx.ModelProto,
        taps: Sequence[str] = (),
        *,
        optimize: bool = True,
        threads: int = 1,
        dump: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if dump is not None:
            options.optimized_model_filepath = str(dump)
            # Unpacked weights may outgrow what one protobuf holds.
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", f"{dump.name}.data")
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
        if isinstance(model, Path) and not model.exists():
            raise InputError(f"{model}: no such file")
        path = model if isinstance(model, Path) else getattr(model, "path", None)
        with _source(model, taps) as source:
            try:
                self._session = ort.InferenceSession(
                    source,
                    options,
                    providers=["CPUExecutionProvider"],
                    disabled_optimizers=LOSING_OUTPUTS if taps else None,
                )
            except Exception as cause:
                raise InputError(
                    f"{path or 'the model'}: onnxruntime cannot load it: {_reason(cause)}"
                ) from cause
        try:
            self.outputs = [o.name for o in self._session.get_outputs()]
            self.inputs = [_input(i) for i in self._session.get_inputs()]
        except UnicodeDecodeError as cause:
            odd = f"the name of an input or output is not UTF-8: {cause.object!r}"
            raise InputError(f"{path or 'the model'}: {odd}") from cause

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """All outputs and taps that are tensors of numbers, by name.

        Raises:
            InputError: onnxruntime cannot run the model on these feeds.
        """
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as cause:
            shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in feeds.items())
            raise InputError(
                f"onnxruntime cannot run the model on {shapes or 'constants'}: {_reason(cause)}"
            ) from cause
        named = zip(self.outputs, values, strict=True)
        return {
            name: value for name, value in named
            if isinstance(value, np.ndarray) and value.dtype.kind != "O"
        }  # fmt: skip


def optimized_graph(model: Model | Path) -> onnx.GraphProto:
    """The graph onnxruntime runs after all its optimisations, weights left out of memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimized.onnx"
        Session(model, dump=file)
        return onnx.load(file, load_external_data=False).graph


def runs_on_integers(node: onnx.NodeProto) -> bool:
    """Whether a node of an optimised graph is an integer kernel."""
    return node.op_type.startswith("QLinear") or node.op_type in INTEGER_KERNELS


def cpu_note() -> str:
    """What the processor offers for 8-bit products, for printing beside results."""
    with contextlib.suppress(OSError):
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").split())
        found = sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
        return ", ".join(found) or "none (integers win less, and weights beyond 64 may saturate)"
    return "unknown"


@contextlib.contextmanager
def _source(model: Model | Path | onnx.ModelProto, taps: Sequence[str]) -> Iterator[str | bytes]:
    """What onnxruntime loads: a path where the model is one or is too large, else bytes."""
    if isinstance(model, onnx.ModelProto):
        yield model.SerializeToString()
    elif isinstance(model, Path) and not taps:
        yield str(model)
    elif isinstance(model, Path):
        proto = onnx.load(model)
        _add_outputs(proto, taps)
        yield proto.SerializeToString()
    elif model.nbytes <= INLINE_LIMIT:
        proto = model.to_proto()
        _add_outputs(proto, taps)
        yield proto.SerializeToString()
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            model.save(file)
            proto = onnx.load(file, load_external_data=False)
            _add_outputs(proto, taps)
            file.write_bytes(proto.SerializeToString())
            yield str(file)


def _add_outputs(proto: onnx.ModelProto, taps: Sequence[str]) -> None:
    present = {o.name for o in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(taps) if name not in present
    )


def _input(arg: "ort.NodeArg") -> Input:
    kind = arg.type.removeprefix("tensor(").removesuffix(")")
    dtypes = {"float": "float32", "double": "float64"}
    try:
        dtype = np.dtype(dtypes.get(kind, kind))
    except TypeError as cause:
        raise InputError(
            f"input {arg.name} is a {arg.type}; only numeric tensors can be fed"
        ) from (cause)
    # Of an unknown rank, onnxruntime says the same as of a scalar.
    sizes = tuple(d if isinstance(d, int) and d > 0 else None for d in arg.shape)
    return Input(arg.name, dtype, sizes or None)


def _reason(cause: Exception) -> str:
    """The last clause of an onnxruntime error, on one line."""
    text = " ".join(str(cause).split())
    return text.split(" : ", 2)[-1][:300] or type(cause).__name__


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map(work, items)`` on all cores, results in order, at most one item a core in memory."""
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        running: deque[Future[R]] = deque()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def evaluate(model: Model, tensors: Sequence[gs.Tensor]) -> dict[str, Array]:
    """Values of tensors that depend on no input of the model."""
    if not tensors:
        return {}
    part = model.clone()
    found = part.graph.tensors()
    part.graph.inputs, part.graph.outputs = [], [found[t.name] for t in tensors]
    part.tidy()
    return Session(part).run({})


def version() -> str:
    """The onnxruntime in use."""
    return str(ort.__version__)


def random_feeds(
    inputs: Sequence[Input], seed: int = 0, batch: int = 1, side: int | None = None
) -> dict[str, Array]:
    """Feeds that fit ``inputs``: normal floats, zeros for the rest.

    Open sizes are ``batch``, those behind the first axis ``side`` if that is given.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for i in inputs:
        shape = [d or (side if side and axis else batch) for axis, d in enumerate(i.shape or ())]
        floating = np.issubdtype(i.dtype, np.floating)
        feeds[i.name] = (rng.standard_normal(shape) if floating else np.zeros(shape)).astype(
            i.dtype
        )
    return feeds
