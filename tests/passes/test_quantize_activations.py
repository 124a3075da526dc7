"""Which activations get how many bits."""

import pytest

from onnxq.inspect import inspect
from onnxq.model import load
from tests.graphs import build, quantize

BRANCHES = (
    "(float[1,3,8,8] x) => (float[] y, float[] z) { a = Conv(x, w1) r = Relu(a) "
    "b = Conv(r, w2) f = Flatten(b) c = Conv(b, w2) p = GlobalAveragePool(c) g = Flatten(p) "
    "y = Gemm(g, w3) z = Gemm(f, w4) }"
)
WEIGHTS = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 5), "w4": (64, 5)}


@pytest.mark.parametrize("ends", [8, 5, 2])
def test_what_the_first_and_the_last_layers_read_keeps_more_bits(tmp_path, ends):
    _, file = quantize(build(BRANCHES, **WEIGHTS), tmp_path, act_bits=3, first_last_bits=ends)
    found, kernels = inspect(load(file), file)
    wide = max(3, ends)
    # The second Conv's result is what a last layer reads, too.
    assert {layer.name: layer.act_bits for layer in found} == {
        "Conv_a": wide, "Conv_b": 3, "Conv_c": wide, "Gemm_y": wide, "Gemm_z": wide,
    }  # fmt: skip
    assert len(kernels.integer) == 5
