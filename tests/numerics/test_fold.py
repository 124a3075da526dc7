"""A folded batch normalization computes what it did on its own."""

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest

from onnxq.numerics import fold

EPS = 1e-3
CASES = [(6, 4, 1), (6, 4, 2), (8, 4, 4), (4, 4, 4)]  # c_out, c_in, groups


def run(body: str, **arrays: np.ndarray) -> np.ndarray:
    """The result of a graph over float32 arrays, in onnxruntime."""
    inputs = ", ".join(f"float{list(x.shape)} {name}" for name, x in arrays.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> main ({inputs}) => (float y) {{ {body} }}'
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {k: v.astype(np.float32) for k, v in arrays.items()})[0]


def statistics(channels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """gamma, beta, mean and variance, float32; one gamma is negative, one variance tiny."""
    gamma = rng.normal(1, 0.5, channels)
    gamma[0] = -0.7
    var = rng.gamma(2.0, 1.0, channels)
    var[1] = 1e-8
    found = {"g": gamma, "t": rng.normal(size=channels), "m": rng.normal(size=channels), "v": var}
    return {name: array.astype(np.float32) for name, array in found.items()}


def affine(norm: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return fold.affine_of_batchnorm(*norm.values(), EPS)


def layer(
    shape: tuple[int, ...], c_out: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias."""
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=c_out).astype(np.float32)


def near(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


NORM = f"BatchNormalization<epsilon={EPS}>"


@pytest.mark.parametrize(("c_out", "c_in", "groups"), CASES)
def test_after_a_convolution(c_out: int, c_in: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, c_in, 7, 7))
    w, b = layer((c_out, c_in // groups, 3, 3), c_out, rng)
    norm = statistics(c_out, rng)
    conv = f"Conv<group={groups}, pads=[1, 1, 1, 1]>(x, w, b)"
    expected = run(f"c = {conv} y = {NORM}(c, g, t, m, v)", x=x, w=w, b=b, **norm)
    a, d = affine(norm)
    w, b = fold.fold_after(w, b, a, d, a.reshape(-1, 1, 1, 1))
    near(run(f"y = {conv}", x=x, w=w, b=b), expected)
    assert (w.dtype, b.dtype) == (np.float32, np.float32)


def test_after_a_transposed_convolution() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 5))
    w, b = layer((3, 4, 2, 2), 4, rng)
    norm = statistics(4, rng)
    conv = "ConvTranspose<strides=[2, 2]>(x, w, b)"
    expected = run(f"c = {conv} y = {NORM}(c, g, t, m, v)", x=x, w=w, b=b, **norm)
    a, d = affine(norm)
    w, b = fold.fold_after(w, b, a, d, a.reshape(1, -1, 1, 1))
    near(run(f"y = {conv}", x=x, w=w, b=b), expected)


@pytest.mark.parametrize(("c_out", "c_in", "groups"), CASES)
def test_before_a_convolution(c_out: int, c_in: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, c_in, 7, 7))
    w, b = layer((c_out, c_in // groups, 3, 3), c_out, rng)
    norm = statistics(c_in, rng)
    conv = f"Conv<group={groups}>"
    expected = run(f"n = {NORM}(x, g, t, m, v) y = {conv}(n, w, b)", x=x, w=w, b=b, **norm)
    w, b = fold.fold_before(w, b, *affine(norm), groups)
    near(run(f"y = {conv}(x, w, b)", x=x, w=w, b=b), expected)
    assert (w.dtype, b.dtype) == (np.float32, np.float32)


def test_before_a_fully_connected_layer() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4))
    w, b = layer((6, 4), 6, rng)
    norm = statistics(4, rng)
    gemm = "Gemm<transB=1>"
    expected = run(f"n = {NORM}(x, g, t, m, v) y = {gemm}(n, w, b)", x=x, w=w, b=b, **norm)
    w, b = fold.fold_before(w, b, *affine(norm), 1)
    near(run(f"y = {gemm}(x, w, b)", x=x, w=w, b=b), expected)
