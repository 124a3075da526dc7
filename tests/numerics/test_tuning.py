"""Noise to signal is what its definition says; the candidates are ranges that methods find."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics import ranges, tuning
from onnxq.numerics.affine import fake_quantize, qparams
from onnxq.numerics.observe import Histogram
from onnxq.spec import activation_spec


def seen(x):
    histogram = Histogram()
    histogram.update(x)
    return histogram


def stream(seed, count=3000):
    """A long tail above zero and a short one below."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(1.0, 2.0, count) - 0.5).astype(np.float32)


@pytest.mark.parametrize("method", ranges.ACTIVATION)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_candidates_begin_with_the_method_s_own_and_are_all_different(method, bits, seed):
    x, spec = seen(stream(seed)), activation_spec(bits)
    grids = tuning.candidates(x, spec, method)
    own = qparams(*ranges.ACTIVATION[method](x, spec), spec)
    assert (grids[0].scale, grids[0].zero_point) == (own.scale, own.zero_point)
    assert len({(float(g.scale), int(g.zero_point)) for g in grids}) == len(grids)
    assert len(grids) >= sum(f <= 1 for f in tuning.FACTORS)
    # The zero point is rounded, by which a grid can shift half a step.
    assert all(x.lo - g.scale / 2 <= g.lo and g.hi <= x.hi + g.scale / 2 for g in grids)


@given(seed=st.integers(0, 1000), bits=st.integers(2, 8))
def test_noise_of_a_layer_is_the_variance_of_its_errors_over_that_of_its_results(seed, bits):
    rng = np.random.default_rng(seed)
    rows = rng.gamma(1.0, 1.0, (2, 50, 3)).astype(np.float32)
    weight = rng.standard_normal((2, 4, 3)).astype(np.float32)
    grid = qparams(np.asarray(0.0), np.asarray(3.0), activation_spec(bits))
    errors, results = [], []
    for group in range(2):
        for w in weight[group].astype(np.float64):
            y = [float(np.dot(w, row)) for row in rows[group]]
            y_q = [float(np.dot(w, row)) for row in fake_quantize(rows[group], grid)]
            errors.append(np.subtract(y_q, y))
            results.append(y)
    wanted = np.var(errors, axis=1).sum() / np.var(results, axis=1).sum()
    (found,) = tuning.layer_noise(rows, weight, [grid])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_noise_of_a_tensor_is_its_mean_squared_error_over_its_variance():
    x = stream(0, 100_000)
    grid = qparams(np.asarray(-0.5), np.asarray(6.0), activation_spec(4))
    wanted = np.mean((x - fake_quantize(x, grid)).astype(np.float64) ** 2) / np.var(x)
    np.testing.assert_allclose(tuning.noise(seen(x), [grid]), wanted, rtol=5e-3)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([2.0**-9, 2.0**7]))
def test_the_size_of_a_layer_s_weights_makes_no_difference(seed, scale):
    rng = np.random.default_rng(seed)
    rows, weight = rng.standard_normal((1, 60, 5)), rng.standard_normal((1, 3, 5))
    grids = tuning.candidates(seen(rows.astype(np.float32)), activation_spec(4), "minmax")
    one, other = (
        tuning.layer_noise(rows.astype(np.float32), s * weight, grids) for s in (1, scale)
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7])
def test_what_never_changes_has_no_say(value):
    rows = np.full((1, 7, 3), value, np.float32)
    grids = [qparams(np.asarray(0.0), np.asarray(1.0), activation_spec(b)) for b in (2, 8)]
    assert tuning.layer_noise(rows, np.full((1, 2, 3), 0.3), grids).tolist() == [0, 0]
    assert tuning.noise(seen(rows), grids).tolist() == [0, 0]
