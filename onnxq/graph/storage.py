"""How the codes of weights lie in a file, and the standard operators that bring them back.

* 8 bits: int8.
* 4 bits: int4 behind a Cast, from onnxruntime 1.23 and opset 21 on.
* 2 bits: int2 behind a Cast, from onnxruntime 1.24 and opset 25 on.
* Indices into a codebook, of these widths: uint4 or uint2 behind a Cast and a Gather.
* Other widths: planes of bits (numerics/packing.py), the codes of all layers of one width in one
  stream, unpacked by look-ups in tables and cut by a Split.

Weights of a convolution in many narrow groups become those of one in fewer, and those of one over
pixels those of one over strips of them, with zeros between.

All of it depends on constants alone: onnxruntime computes it once, when it loads the model.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.graph.tensors import INT8, INT32, element_bits
from onnxq.numerics import packing
from onnxq.numerics.strips import PIXELS, Strip
from onnxq.spec import Array, Ints, QTensor

# The oldest onnxruntime whose best forms are used, unless another is named.
OLDEST = "1.23"
# The opset that quantization needs in any case, for QuantizeLinear per channel.
OPSET = 13
# Operators that unpack weights, and are gone from a graph that onnxruntime has optimised.
UNPACKERS = {"Add", "Cast", "Div", "Gather", "Mod", "Mul", "Range", "Reshape", "Split"}
# What puts zeros between weights does so in these orders: for channel groups, and for strips.
MERGERS = ("Reshape", "Transpose", "Pad", "Reshape", "Slice", "Reshape", "Transpose", "Reshape")
WIDENERS = ("Pad", "Concat", "Reshape", "Transpose", "Reshape")
# The oldest onnxruntime that rounds the float bias of an integer Conv, of those that were tried.
ROUNDS_BIASES = (1, 23)
# The newest opset of onnxruntimes that were seen to refuse newer ones.
LIMITED = {(1, 20): 21}
# Types narrower than a byte: bits to numpy's dtypes of codes and of indices, the onnxruntime that
# casts them, their opset.
NARROW: dict[int, tuple[Any, Any, tuple[int, int], int]] = {
    4: (ml_dtypes.int4, ml_dtypes.uint4, (1, 23), 21),
    2: (ml_dtypes.int2, ml_dtypes.uint2, (1, 24), 25),
}


def parse_version(text: str) -> tuple[int, int]:
    """Major and minor number of an onnxruntime version."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def newest_opset(target: str) -> float:
    """The newest opset that ``target`` reads, as far as that was tried."""
    return LIMITED.get(parse_version(target), float("inf"))


def rounds_biases(target: str) -> bool:
    """Whether ``target`` rounds the float bias of an integer Conv by itself."""
    return parse_version(target) >= ROUNDS_BIASES


def has_dtype(bits: int, target: str) -> bool:
    """Whether weights are stored in an ONNX type of their width that ``target`` can cast."""
    return bits in NARROW and parse_version(target) >= NARROW[bits][2]


def needed_opset(bits: int, target: str) -> int:
    """The least opset of a model that stores weights of a width."""
    return NARROW[bits][3] if has_dtype(bits, target) else OPSET


def stored_names(tensor: gs.Tensor) -> list[str]:
    """Names a constant operand has on its way from the file to its reader; [] if it is not one."""
    if isinstance(tensor, gs.Constant):
        return [tensor.name]
    if (apart := _apart(tensor)) is not tensor:
        names = stored_names(apart)
        return [tensor.name, *names] if names else []
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.op not in {"DequantizeLinear", *UNPACKERS}:
        return []
    path: list[str] = []
    for source in producer.inputs:
        if not (names := stored_names(source)):
            return []
        path = path or names
    return [tensor.name, *path]


@dataclass(frozen=True)
class Stored:
    """How a constant operand lies in a file.

    Attributes:
        bits: That a value takes, scales and shared tables apart.
        scales: Number of scales; 0 if it is not quantized.
        book: Bits of its codebook; 0 if its levels are evenly spaced.
        shape: Of its values, if zeros stand between them that exist in memory alone; else empty.
    """

    bits: int = 32
    scales: int = 0
    book: int = 0
    shape: tuple[int, ...] = ()


def stored(tensor: gs.Tensor) -> Stored:
    """How a weight is stored: as codes behind a DequantizeLinear or a Mul, else as floats."""
    if isinstance(tensor, gs.Constant):
        return Stored(element_bits(tensor))
    node = tensor.inputs[0]
    if node.op == "Reshape" and node.inputs[0].inputs:  # of groups to channels
        node = node.inputs[0].inputs[0]
    if node.op not in ("DequantizeLinear", "Mul") or not isinstance(node.inputs[1], gs.Constant):
        return Stored()
    apart = _apart(node.inputs[0])
    if (found := _codes(apart)) is None:
        return Stored()
    bits, book = found
    shape = () if apart is node.inputs[0] else _shape_of(apart)
    return Stored(bits, int(node.inputs[1].values.size), book, shape)


def _apart(tensor: gs.Tensor) -> gs.Tensor:
    """The codes before zeros were put between them; itself if none were."""
    for ops in (MERGERS, WIDENERS):
        source, path = tensor, list(ops)
        while path and source.inputs and source.inputs[0].op == path[-1]:
            source = source.inputs[0].inputs[0]
            path.pop()
        if not path:
            return source
    return tensor


def _shape_of(codes: gs.Tensor) -> tuple[int, ...]:
    """The shape of stored codes, wherever it is told."""
    while not isinstance(codes, gs.Constant):
        node = codes.inputs[0]
        if node.op == "Reshape":
            return tuple(int(n) for n in node.inputs[1].values)
        codes = node.inputs[1 if node.op == "Gather" else 0]
    return tuple(codes.shape)


def _codes(tensor: gs.Tensor) -> tuple[int, int] | None:
    """Bits of a code and of the codebook behind a tensor; None if it is no codes."""
    book = 0
    while not isinstance(tensor, gs.Constant):
        node = tensor.inputs[0]
        if node.op == "Split":
            planes = _planes(node.inputs[0])
            bits = 8 * sum(int(plane.values.size) for plane in planes)
            count = int(node.inputs[1].values.sum()) if len(node.inputs) > 1 else 0
            book = book or _book(node.inputs[0])
            return (round(bits / count), book) if planes and count else None
        if node.op == "Gather":
            book = _book(tensor)
        elif node.op not in ("Cast", "Reshape"):
            return None
        tensor = node.inputs[1 if node.op == "Gather" else 0]
    return None if tensor.dtype in (np.float16, np.float32) else (element_bits(tensor), book)


def _book(tensor: gs.Tensor) -> int:
    """Bits of the levels that a tensor is looked up in, if they are not evenly spaced."""
    while not isinstance(tensor, gs.Constant) and tensor.inputs[0].op in ("Gather", "Reshape"):
        tensor = tensor.inputs[0].inputs[0]
    if not isinstance(tensor, gs.Constant):
        return 0
    book = tensor.values
    even = book.dtype == np.int8 and bool((np.diff(book.astype(int)) == 1).all())
    return 0 if even else 8 * int(book.nbytes)


def _planes(tensor: gs.Tensor) -> list[gs.Constant]:
    """The constants of bytes that a stream is unpacked from."""
    if isinstance(tensor, gs.Constant):
        return [tensor] if tensor.dtype == np.uint8 else []
    return [plane for source in tensor.inputs[0].inputs for plane in _planes(source)]


@dataclass
class _Part:
    """Codes of a weight, the levels they stand for, and the tensor they are to become."""

    codes: Ints
    book: Array
    result: gs.Variable


class Storage:
    """Puts weights into a model; ``finish`` writes what is shared by several.

    Args:
        model: Its graph is added to.
        target: Version of the oldest onnxruntime that must read the file.
    """

    def __init__(self, model: Model, target: str) -> None:
        self.model = model
        self.target = target
        self._streams: dict[int, list[_Part]] = {}
        self._tables: dict[tuple[int, int], gs.Variable] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], gs.Constant] = {}
        self._stored: dict[tuple[Any, ...], gs.Tensor] = {}

    def store(self, name: str, weight: QTensor, dtype: int = INT8) -> gs.Tensor:
        """A tensor of the weight's levels, int8 or, of a float book, float32; equal ones are one.

        Args:
            name: Of the weight.
            weight: Its codes are stored, not its scale.
            dtype: The type to cast them to.
        """
        parts = [weight.codes] if weight.book is None else [weight.codes, weight.book]
        arrays = [(a.dtype.name, a.shape, hashlib.sha256(a.tobytes()).digest()) for a in parts]
        key = (weight.params.spec.bits, dtype, *arrays)
        if key not in self._stored:
            self._stored[key] = self._levels(name, weight, dtype)
        return self._stored[key]

    def _levels(self, name: str, weight: QTensor, dtype: int) -> gs.Tensor:
        """A tensor of the weight's levels; see ``store``."""
        bits = weight.params.spec.bits
        if bits == 8 and weight.book is None:
            result = self.model.constant(f"{name}_codes", weight.codes)
            return result if dtype == INT8 else self._cast(result, dtype)
        if not has_dtype(bits, self.target) or self.model.opset < needed_opset(bits, self.target):
            result = self._queue(name, weight, bits)
        else:
            signed, unsigned, *_ = NARROW[bits]
            narrow = weight.codes.astype(signed if weight.book is None else unsigned)
            codes = self.model.constant(f"{name}_codes", narrow)
            if weight.book is None:
                return self._cast(codes, dtype)
            indices = self._cast(codes, INT32)
            result = self._apply("Gather", self.shared("n", weight.book), indices)
        ready = dtype == INT8 or (weight.book is not None and weight.book.dtype == np.float32)
        return result if ready else self._cast(result, dtype)

    def merge(self, codes: gs.Tensor, shape: tuple[int, ...], groups: int, count: int) -> gs.Tensor:
        """The codes of a grouped convolution as ``numerics.groups.merge`` has them.

        Args:
            codes: Levels, (c_out, c_in / groups, *kernel), int8.
            shape: Theirs.
            groups: Of the convolution.
            count: Divides them.
        """
        c_out, inputs, *kernel = shape
        outer, rows, width = groups // count, c_out // groups, math.prod(shape[1:])
        whole = count * width
        turn = {"perm": [0, 2, 1, 3]}
        blocks = self._apply("Transpose", self._reshaped(codes, outer, count, rows, width), **turn)
        padded = self._apply("Pad", blocks, self._shape((0,) * 7 + (whole,)))
        flat = self._reshaped(padded, outer, rows, count * (whole + width))
        ends = (self._shape((end,)) for end in (0, count * whole, 2))
        cut = self._apply("Slice", flat, *ends)
        apart = self._apply("Transpose", self._reshaped(cut, outer, rows, count, whole), **turn)
        return self._reshaped(apart, c_out, count * inputs, *kernel)

    def widen(self, codes: gs.Tensor, shape: tuple[int, ...], strip: Strip) -> gs.Tensor:
        """The codes of a convolution as ``numerics.strips.widen`` has them.

        Args:
            codes: Levels, (c_out, c_in, height, kernel), int8.
            shape: Theirs.
            strip: What the convolution does along a row.
        """
        _, c_in, height, _ = shape
        ends = (self._shape((0, 0, 0, first, 0, 0, 0, last)) for first, last in strip.zeros)
        rows = [self._apply("Pad", codes, end) for end in ends]
        split = self._reshaped(
            self._apply("Concat", *rows, axis=0), -1, c_in, height * strip.width, PIXELS
        )
        turned = self._apply("Transpose", split, perm=[0, 3, 1, 2])
        return self._reshaped(turned, -1, PIXELS * c_in, height, strip.width)

    def finish(self) -> None:
        """Write the streams and what unpacks them."""
        for bits, parts in self._streams.items():
            flat = np.concatenate([part.codes.reshape(-1) for part in parts])
            one = len({part.book.tobytes() for part in parts}) == 1
            stream = self._unpack(packing.pack(flat, bits), bits, parts[0].book if one else None)
            sizes = [part.codes.size for part in parts]
            if rest := -flat.size % packing.ALIGNMENT:
                sizes.append(rest)
            pieces = [self.model.variable("w") for _ in sizes]
            split = self.model.constant("sizes", np.array(sizes, np.int64))
            self.model.add("Split", [stream, split], *pieces)
            for piece, part in zip(pieces, parts, strict=False):
                if not one:
                    piece = self._apply("Gather", self.shared("n", part.book), piece)
                self.model.add("Reshape", [piece, self._shape(part.codes.shape)], part.result)

    def shared(self, wish: str, values: Array) -> gs.Constant:
        """A constant, made once however many nodes need it."""
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self.model.constant(wish, values)
        return self._constants[key]

    def _queue(self, name: str, weight: QTensor, bits: int) -> gs.Variable:
        """Append the codes of a weight, as indices, to the stream of its width.

        A book is filled up: tables are made for every index that the bits can hold.
        """
        codes, book = weight.codes, weight.book
        if book is None:
            half = 1 << bits - 1
            codes, book = (codes + half).astype(np.uint8), np.arange(-half, half, dtype=np.int8)
        book = np.pad(book, (0, (1 << bits) - book.size), mode="edge")
        result = self.model.variable(f"{name}_codes")
        self._streams.setdefault(bits, []).append(_Part(codes, book, result))
        return result

    def _unpack(self, planes: list[Array], bits: int, book: Array | None) -> gs.Tensor:
        """A stream, flat: its levels, or its indices if there is no one book."""
        total, above = None, bits
        for width, plane in zip(packing.plane_widths(bits), planes, strict=True):
            above -= width
            table = self._table(width, above)
            if book is not None and len(planes) == 1:
                table = self._apply("Gather", self.shared("n", book), table)
            stored = self.model.constant(f"packed{bits}", plane)
            rows = self._apply("Gather", table, self._cast(stored, INT32))
            values = self._apply("Reshape", rows, self._shape((-1,)))
            total = values if total is None else self._apply("Add", total, values)
        assert total is not None
        if book is None or len(planes) == 1:
            return total
        return self._apply("Gather", self.shared("n", book), total)

    def _table(self, width: int, above: int) -> gs.Variable:
        """What each byte of a plane holds, int32 (256, 8 / width), computed from small constants.

        T[byte, i] = (byte // 2^(width i) mod 2^width) 2^above
        """
        if (width, above) not in self._tables:
            base = 1 << width
            powers = base ** np.arange(8 // width)
            row = self._apply("Div", self._bytes, self._number(powers))
            table = self._apply("Mod", row, self._number(base))
            if above:
                table = self._apply("Mul", table, self._number(1 << above))
            self._tables[width, above] = table
        return self._tables[width, above]

    @cached_property
    def _bytes(self) -> gs.Variable:
        """0 to 255, int32 (256, 1)."""
        count = self._apply("Range", *(self._number(n) for n in (0, 256, 1)))
        return self._apply("Reshape", count, self._shape((-1, 1)))

    def _apply(self, op: str, *inputs: gs.Tensor, **attrs: Any) -> gs.Variable:
        result = self.model.variable("u")
        self.model.add(op, list(inputs), result, **attrs)
        return result

    def _reshaped(self, tensor: gs.Tensor, *shape: int) -> gs.Variable:
        return self._apply("Reshape", tensor, self._shape(shape))

    def _cast(self, tensor: gs.Tensor, dtype: int) -> gs.Variable:
        result = self.model.variable(f"{tensor.name}_as")
        self.model.add("Cast", [tensor], result, to=dtype)
        return result

    def _number(self, value: Array | int) -> gs.Constant:
        return self.shared("n", np.array(value, np.int32))

    def _shape(self, shape: tuple[int, ...]) -> gs.Constant:
        return self.shared("n", np.array(shape, np.int64))
