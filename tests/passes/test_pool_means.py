import numpy as np
import onnx
import pytest

from onnxq.passes.pool_means import PoolMeans
from tests.graphs import after, build, ops

SQUEEZED = ["GlobalAveragePool", "Squeeze"]


@pytest.mark.parametrize(
    ("mean", "opset", "expected"),
    [
        ("ReduceMean<axes=[2,3]>(x)", 17, ["GlobalAveragePool"]),
        ("ReduceMean<axes=[-1,-2]>(x)", 17, ["GlobalAveragePool"]),
        ("ReduceMean<axes=[2,3],keepdims=0>(x)", 17, SQUEEZED),
        ("ReduceMean(x, hw)", 18, ["GlobalAveragePool"]),
        ("ReduceMean<keepdims=0>(x, hw)", 21, SQUEEZED),
    ],
)
def test_a_mean_over_height_and_width_becomes_a_pool(mean, opset, expected):
    proto = build(
        f"(float[2,4,6,6] x) => (float[] y) {{ y = {mean} }}", opset=opset, hw=np.array([3, -2])
    )
    assert ops(after(proto, PoolMeans())[0]) == expected


@pytest.mark.parametrize(
    "nodes",
    [
        "y = ReduceMean(x)",
        "y = ReduceMean<axes=[1]>(x)",
        "y = ReduceMean<axes=[1,2,3]>(x)",
        "c = Unsqueeze(x, two) y = ReduceMean<axes=[2,3]>(c)",
        "a = Cast<to=11>(x) b = ReduceMean<axes=[2,3]>(a) y = Cast<to=1>(b)",
    ],
)
def test_another_mean_is_left_with_a_reason(nodes):
    proto = build(f"(float[2,4,6,6] x) => (float[] y) {{ {nodes} }}", two=np.array([2]))
    model, outcome = after(onnx.shape_inference.infer_shapes(proto), PoolMeans())
    assert "ReduceMean" in ops(model)
    assert not outcome
    assert len(outcome.skips) == 1
