"""The quantizer is onnxruntime's, bit for bit; its scales are always usable."""

import functools

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics.affine import (
    MOST_CHANGE,
    TINY,
    aligned,
    dequantize,
    fake_quantize,
    qparams,
    quantize,
)
from onnxq.spec import QParams, QuantSpec, activation_spec, weight_spec

BITS = range(2, 9)
SPECS = [
    *(activation_spec(bits) for bits in BITS),
    *(weight_spec(bits, per_channel) for bits in BITS for per_channel in (True, False)),
]
CHANNELS = 3

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# 300 steps of the coarsest grid on these are still finite.
large = st.floats(-(2.0**118), 2.0**118, width=32)


@functools.cache
def onnx_session(op: str, code: str) -> ort.InferenceSession:
    """``op`` along axis 0 with scale and zero point as inputs, the codes clipped to a grid."""
    body = {
        "QuantizeLinear": f"({code}[N, M] y) {{ c = QuantizeLinear<axis=0>(x, s, z)"
        " y = Clip(c, lo, hi) }",
        "DequantizeLinear": "(float[N, M] y) { y = DequantizeLinear<axis=0>(x, s, z) }",
    }[op]
    kind = "float" if op == "QuantizeLinear" else code
    ends = f", {code} lo, {code} hi" if op == "QuantizeLinear" else ""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        f"main ({kind}[N, M] x, float s, {code} z{ends}) => {body}"
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def onnx_run(op: str, x: np.ndarray, params: QParams) -> np.ndarray:
    spec = params.spec
    feeds = {"x": x, "s": params.scale, "z": params.zero_point}
    if op == "QuantizeLinear":
        feeds |= {"lo": np.array(spec.qmin, spec.dtype), "hi": np.array(spec.qmax, spec.dtype)}
    return onnx_session(op, str(spec.dtype)).run(None, feeds)[0]


@st.composite
def grids(draw: st.DrawFn, ends: st.SearchStrategy[float] = large) -> QParams:
    """Any grid that a range can lead to, for an array (CHANNELS, n)."""
    spec = draw(st.sampled_from(SPECS))
    shape = (CHANNELS,) if spec.per_channel else ()
    a, b = (draw(hnp.arrays(np.float32, shape, elements=ends)) for _ in range(2))
    return qparams(np.minimum(a, b), np.maximum(a, b), spec, 0 if spec.per_channel else None)


@given(
    grids(), hnp.arrays(np.float32, (CHANNELS, 8), elements=st.floats(width=32, allow_nan=False))
)
@settings(deadline=None)
def test_quantize_is_quantizelinear_then_clip(params: QParams, x: np.ndarray) -> None:
    halfway = np.arange(-300.5, 300.5, dtype=np.float32) * params.scale.reshape(-1, 1)
    x = np.hstack([x, np.broadcast_to(halfway, (CHANNELS, halfway.shape[1]))])
    codes = quantize(x, params)
    assert codes.dtype == params.spec.dtype
    np.testing.assert_array_equal(codes, onnx_run("QuantizeLinear", x, params))


@given(grids())
@settings(deadline=None)
def test_dequantize_is_dequantizelinear(params: QParams) -> None:
    spec = params.spec
    codes = np.tile(np.arange(spec.qmin, spec.qmax + 1, dtype=spec.dtype), (CHANNELS, 1))
    values = dequantize(codes, params)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, onnx_run("DequantizeLinear", codes, params))


@given(grids(), hnp.arrays(np.float64, (CHANNELS, 16), elements=st.floats(0, 1)))
def test_values_on_the_grid_move_by_half_a_step_at_most(params: QParams, t: np.ndarray) -> None:
    lo, hi, scale = (a.reshape(-1, 1) for a in (params.lo, params.hi, params.scale))
    x = (lo + t * (hi - lo)).astype(np.float32)
    error = np.abs(x.astype(np.float64) - fake_quantize(x, params))
    # Quotient and product are below 256 steps: each rounds by 2^-17 of a step at most.
    assert (error <= scale * (0.5 + 2**-15)).all()


@given(grids(finite))
def test_scales_are_positive_finite_and_normal(params: QParams) -> None:
    assert params.scale.dtype == np.float32
    assert (params.scale >= TINY).all()
    assert np.isfinite(params.scale).all()


@given(grids(finite))
def test_zero_is_exact(params: QParams) -> None:
    zeros = np.zeros((CHANNELS, 1), np.float32)
    np.testing.assert_array_equal(fake_quantize(zeros, params), zeros)
    assert (params.zero_point >= params.spec.qmin).all()
    assert (params.zero_point <= params.spec.qmax).all()


@given(grids())
def test_the_range_of_a_grid_leads_back_to_it(params: QParams) -> None:
    again = qparams(params.lo, params.hi, params.spec, params.axis)
    np.testing.assert_array_equal(again.zero_point, params.zero_point)
    np.testing.assert_allclose(again.scale, params.scale, rtol=2**-23)


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40])
@pytest.mark.parametrize("spec", [weight_spec(8), weight_spec(2), activation_spec(8)], ids=str)
def test_a_dead_channel_gets_scale_one(spec: QuantSpec, largest: float) -> None:
    hi = np.array([largest, 1.0], np.float32)
    params = qparams(-hi, hi, spec, 0)
    assert params.scale[0] == 1.0
    assert params.scale[1] < 1.0 or spec.bits == 2
    dead = np.full((2, 3), np.float32(largest))
    np.testing.assert_array_equal(fake_quantize(dead, params)[0], 0.0)


@pytest.mark.parametrize(
    ("lo", "hi", "spec", "scale", "zero_point"),
    [
        (-1.27, 0.5, weight_spec(8), 0.01, 0),
        (-0.5, 7.0, weight_spec(4), 1.0, 0),
        (0.0, 2.55, activation_spec(8), 0.01, 0),
        (-1.0, 1.55, activation_spec(8), 0.01, 100),
        (-1.0, 1.56, activation_spec(8), 2.56 / 255, 100),
        (-1.0, 1.54, activation_spec(8), 2.54 / 255, 100),
        (1.0, 2.55, activation_spec(8), 0.01, 0),
        (-2.55, -1.0, activation_spec(8), 0.01, 255),
        (-5.0, 10.0, activation_spec(4), 1.0, 5),
    ],
)
def test_scale_and_zero_point_of_a_range(
    lo: float, hi: float, spec: QuantSpec, scale: float, zero_point: int
) -> None:
    params = qparams(np.array(lo), np.array(hi), spec)
    assert params.scale == np.float32(scale)
    assert params.zero_point == zero_point


@given(
    zero=st.integers(0, 255), by=st.floats(0.01, 10), scale=st.floats(1e-3, 10.0),
    steps=st.integers(1, 255), sign=st.sampled_from([-1, 1]), off=st.floats(-0.49, 0.49),
)  # fmt: skip
def test_a_sum_with_a_number_has_the_same_codes(zero, by, scale, steps, sign, off):
    spec = activation_spec(8)
    params = QParams(np.float32(scale), np.uint8(zero), None, spec)
    number = sign * by * float(np.float32(scale)) * (steps + off)
    grids = aligned(params, by, number)
    assume(abs(abs(off / steps) - MOST_CHANGE) > 1e-5)
    assert (grids is not None) == (
        0 <= zero - sign * steps <= 255 and abs(off / steps) <= MOST_CHANGE
    )
    assume(grids is not None)
    grid, shifted = grids
    assert grid.scale == pytest.approx(scale, rel=MOST_CHANGE + 1e-6)
    assert grid.zero_point == zero
    codes = np.arange(spec.qmax + 1, dtype=np.uint8)
    wanted = by * dequantize(codes, grid).astype(np.float64) + number
    found = dequantize(codes, shifted)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * by * scale * 600)


@pytest.mark.parametrize(
    ("number", "by", "zero"),
    [
        (3.0, 1.0, 30),  # a tenth is the step
        (-3.0, 1.0, 90),
        (0.5, 1 / 6, 30),
        (3.02, 1.0, 30),  # the step is moved
        (7.0, 1.0, None),  # further down than the grid goes
        (3.04, 1.0, None),  # no near step divides it
        (0.01, 1.0, None),
        (1e30, 1e-30, None),
    ],
)
def test_which_sums_are_another_zero_point(number, by, zero):
    grid = QParams(np.float32(0.1), np.uint8(60), None, activation_spec(8))
    found = aligned(grid, by, number)
    assert (found and int(found[1].zero_point)) == zero
