"""Hard activations are taken apart where their parts run on integers, and only there."""

import pytest

from onnxq.passes.expand_hard_activations import ExpandHardActivations
from tests.graphs import after, build, ops

IMAGE = "(float[1,4,6,6] x) => (float[] y)"


@pytest.mark.parametrize(
    ("nodes", "expanded"),
    [
        ("a = Conv(x, w) h = HardSwish(a) y = Conv(h, w)", ["h"]),
        ("a = Conv(x, w) h = HardSigmoid(a) y = Conv(h, w)", ["h"]),
        ("a = Conv(x, w) h = HardSwish(a) b = Conv(h, w) g = HardSwish(b) y = Neg(g)", ["h"]),
        ("a = Neg(x) h = HardSwish(a) y = Conv(h, w)", []),
        ("a = Conv(x, w) b = Exp(a) h = HardSigmoid(b) y = Conv(h, w)", []),
        ("t = Transpose(x) z = MatMul(x, t) h = HardSwish(z) y = MatMul(h, x)", []),
    ],
)
def test_a_float_operator_stays_one_between_float_operators(nodes, expanded):
    model, outcome = after(build(f"{IMAGE} {{ {nodes} }}", w=(4, 4, 1, 1)), ExpandHardActivations())
    assert [edit.where.split("_")[1] for edit in outcome.edits] == expanded
    hard = sum(op.startswith("Hard") for op in ops(model))
    assert hard == nodes.count("Hard") - len(expanded)
    assert [skip.why for skip in outcome.skips] == ["its neighbours are float operators"] * hard
    assert ops(model).count("Clip") == len(expanded)
