"""ONNX operators as functions of torch tensors: how they are declared and bound to a node.

The positional parameters of a function are the inputs of its operator, the keyword-only ones the
attributes, with ONNX's defaults. An attribute that is not among them is refused when a node is
bound, never ignored; a value that a function cannot do it refuses itself. Of two keyword-only
parameters no attribute is meant: ``opset``, the version of the operator set, and ``count``, how
many outputs are wanted.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_graphsurgeon as gs
import torch
from torch import Tensor

Results = Tensor | Sequence[Tensor]
Function = Callable[..., Results]


class Refused(Exception):  # noqa: N818  (reads as what happened to the node)
    """A node that is not lowered; the text is a clause that says why."""


@dataclass(frozen=True)
class Operator:
    """A function, and the attributes that it knows."""

    function: Function
    attributes: frozenset[str]


OPERATORS: dict[str, Operator] = {}
# Operator sets whose meaning is known. Those before the first broadcast differently.
OPSETS = range(7, 29)
# Parameters of functions that no attribute is meant by.
CONTEXT = {"opset", "count"}


def operator(*names: str) -> Callable[[Function], Function]:
    """Declare a function to be what the operators of these names do."""

    def declare(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        known = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        for name in names:
            if name in OPERATORS:
                raise TypeError(f"two functions are {name}")
            OPERATORS[name] = Operator(function, known)
        return function

    return declare


def operators(functions: Mapping[str, Function]) -> None:
    """Declare functions of inputs alone, torch's own among them, by operator."""
    for name, function in functions.items():
        OPERATORS[name] = Operator(function, frozenset())


def bind(node: gs.Node, opset: int) -> Function:
    """The function of a node's inputs, as tensors or None, that computes its outputs.

    Args:
        node: Of any domain.
        opset: Version of the default operator set.

    Raises:
        Refused: The operator, or an attribute of the node, is not implemented.
    """
    if node.domain not in (None, "", "ai.onnx"):
        raise Refused(f"{node.op} is a custom operator of {node.domain}")
    if opset not in OPSETS:
        raise Refused(f"opset {opset} is not implemented, only {OPSETS[0]} to {OPSETS[-1]}")
    if (found := OPERATORS.get(node.op)) is None:
        raise Refused(f"{node.op} is not implemented")
    for name in node.attrs:
        if name not in found.attributes:
            raise Refused(f"the attribute {name} of {node.op} is not implemented")
    given: dict[str, Any] = {
        name: tensor_of(value.values) if isinstance(value, gs.Constant) else value
        for name, value in node.attrs.items()
    }
    context = {"opset": opset, "count": len(node.outputs)}
    given |= {name: context[name] for name in CONTEXT & found.attributes}
    return partial(found.function, **given) if given else found.function


def integers(tensor: Tensor) -> list[int]:
    """A tensor of sizes, indices or axes as plain numbers."""
    return [int(n) for n in tensor.reshape(-1).tolist()]


def number(tensor: Tensor) -> Any:
    """A tensor of one element as a number, with which torch is faster, unless it is trained."""
    return tensor if tensor.requires_grad else tensor.item()


def tensor_of(values: Any) -> Tensor:
    """A numpy array as a tensor, its own copy.

    Raises:
        Refused: torch has no such dtype.
    """
    try:
        return torch.from_numpy(values.copy())
    except TypeError as cause:
        raise Refused(f"torch has no tensors of {values.dtype}") from cause
