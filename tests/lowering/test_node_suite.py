"""The cases that ONNX defines its operators by: each is computed right, or refused by name."""

import functools
import warnings
from collections import Counter
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from onnxq.graph.loading import from_proto

torch = pytest.importorskip("torch")
from onnxq.lowering import Lowered, Refused  # noqa: E402
from onnxq.lowering.registry import OPERATORS, tensor_of  # noqa: E402

# How many cases of onnx 1.23.2 pass; more is an improvement to write down here. Other releases have
# fewer or more, of which at least the same share passes.
PASSED, ALL = 1220, 1884

# Of floats: relative and absolute.
TOLERANCE = {"float64": (1e-4, 1e-5), "float32": (1e-4, 1e-5), "float16": (1e-3, 1e-3)}
# Some cases are written with four decimals.
DECIMALS = 4


def suite():
    """The cases by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


CASES = suite()


class Outcome(NamedTuple):
    kind: str
    operator: str
    reason: str = ""


def array_of(value):
    """An input or output of a case, which holds what numpy does not know as protobufs."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def difference(found, expected):
    """What is wrong with a result, or nothing."""
    if found.dtype == torch.bfloat16:  # which numpy does not know
        found, expected = found.float(), expected.astype(np.float32)
    found = found.numpy()
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype}{list(found.shape)}, not {expected.dtype}{list(expected.shape)}"
    rtol, atol = TOLERANCE.get(str(expected.dtype), (0, 0))
    if expected.dtype.kind == "f" and np.array_equal(
        expected, expected.astype(float).round(DECIMALS).astype(expected.dtype)
    ):
        atol = 10.0**-DECIMALS
    if np.allclose(found, expected, rtol, atol, equal_nan=True):
        return None
    return f"{found.ravel()[:8]}, not {expected.ravel()[:8]}"


@functools.cache
def outcome(name):
    """What becomes of a case."""
    case = CASES[name]
    proto = onnx.ModelProto.FromString(case.model.SerializeToString())
    operator = proto.graph.node[0].op_type if "expanded" not in name else "(expanded)"
    for node in proto.graph.node:
        if node.op_type not in OPERATORS or node.domain:
            return Outcome("not implemented", node.op_type)
    names = [i.name for i in proto.graph.input], [o.name for o in proto.graph.output]
    try:
        model = from_proto(proto)
    except Exception as cause:
        return Outcome("refused", operator, f"graphsurgeon: {cause}")
    try:
        lowered = Lowered(model)
        for inputs, outputs in case.data_sets:
            given = {n: tensor_of(array_of(x)) for n, x in zip(names[0], inputs, strict=True)}
            found = lowered.run(given, names[1])
            for output, expected in zip(names[1], outputs, strict=True):
                if wrong := difference(found[output], array_of(expected)):
                    return Outcome("wrong", operator, f"{output} is {wrong}")
    except Refused as cause:
        return Outcome("refused", operator, str(cause).partition(": ")[2] or str(cause))
    return Outcome("passed", operator)


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_right_or_refused(name):
    found = outcome(name)
    assert found.kind != "wrong", found.reason


def test_as_many_cases_pass_as_did():
    found = [outcome(name) for name in CASES]
    counts = Counter(o.kind for o in found)
    rows = Counter(f"{o.operator:24} {o.reason}" for o in found if o.kind == "refused")
    lines = [f"{count:4} {row}" for row, count in sorted(rows.items())]
    lines += [
        "not implemented: "
        + ", ".join(sorted({o.operator for o in found if o.kind == "not implemented"}))
    ]
    print("\n".join([str(dict(counts)), *lines]))  # noqa: T201  (shown with -s)
    assert counts["passed"] >= PASSED * min(1, len(CASES) / ALL)
