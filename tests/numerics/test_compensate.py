"""Error compensation against its definitions: re-solved least squares, exhaustive search."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics import compensate

BOOK = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])


def problem(seed, groups=2, rows=3, size=6, samples=40):
    """Weights, a Hessian of correlated inputs, and scales of 3 bits."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((groups, rows, size))
    x = rng.standard_normal((groups, samples, size)) @ rng.standard_normal((groups, size, size))
    hessian = x.transpose(0, 2, 1) @ x / samples
    return w, hessian, np.abs(w).max(axis=2, keepdims=True) / 3 * np.ones_like(w)


def by_least_squares(w, hessian, scale, book):
    """One row: after each rounding, the weights still free are solved for anew (OBQ's meaning)."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    fixed = np.full(len(w), np.nan)
    free = w.copy()
    for i, column in enumerate(order):
        fixed[column] = compensate.to_levels(free[column] / scale[column], (-3, 3), book)
        rest, done = order[i + 1 :], order[: i + 1]
        lost = scale[done] * fixed[done] - w[done]
        inner = hessian[np.ix_(rest, rest)]
        free[rest] = w[rest] - np.linalg.solve(inner, hessian[np.ix_(rest, done)] @ lost)
    return fixed


@pytest.mark.parametrize("book", [None, BOOK], ids=["uniform", "book"])
@pytest.mark.parametrize("block", [128, 2])
@given(seed=st.integers(0, 10_000))
def test_gptq_is_rounding_with_the_rest_solved_for_anew(block, book, seed):
    w, hessian, scale = problem(seed)
    hessian = hessian + compensate.damping(hessian)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compensate, "BLOCK", block)
        found = compensate.gptq(w, hessian, scale, (-3, 3), book)
    for group, row in itertools.product(range(2), range(3)):
        wanted = by_least_squares(w[group, row], hessian[group], scale[group, row], book)
        np.testing.assert_array_equal(found[group, row], wanted)


@pytest.mark.parametrize("book", [None, BOOK], ids=["uniform", "book"])
@pytest.mark.parametrize("shared", [False, True])
@given(seed=st.integers(0, 10_000))
def test_compensation_is_never_worse_than_rounding(shared, book, seed):
    w, hessian, scale = problem(seed)
    metric = hessian + compensate.damping(hessian)
    q, factor = compensate.compensated(w, metric, scale, (-3, 3), book, shared=shared)
    found = compensate.error(factor * scale * q, w, metric)
    plain = compensate.error(scale * compensate.to_levels(w / scale, (-3, 3), book), w, metric)
    if shared:
        assert np.unique(factor).size == 1
        assert found.sum() <= plain.sum()
    else:
        assert (found <= plain).all()


def test_compensation_comes_near_what_an_exhaustive_search_finds():
    excess = []
    for seed in range(20):
        w, hessian, scale = problem(seed, groups=1, rows=1, size=5)
        metric = hessian + compensate.damping(hessian)
        q, _ = compensate.compensated(w, metric, scale, (-3, 3), None, factors=np.ones(1))
        every = np.array(list(itertools.product(range(-3, 4), repeat=5)))[None]
        best = compensate.error(scale[:, :1] * every, w, metric).min()
        plain = compensate.error(scale * compensate.to_levels(w / scale, (-3, 3), None), w, metric)
        found = compensate.error(scale * q, w, metric)
        excess.append([(found / best).item(), (plain / best).item()])
    found, plain = np.mean(excess, axis=0)
    assert found < 1.1 < 1.8 < plain


def test_what_error_compensation_leaves_is_refined():
    w, hessian, scale = problem(0, rows=16, size=40, samples=400)
    metric = hessian + compensate.damping(hessian)
    once = compensate.error(scale * compensate.gptq(w, metric, scale, (-3, 3), None), w, metric)
    q, _ = compensate.compensated(w, metric, scale, (-3, 3), None, factors=np.ones(1))
    assert compensate.error(scale * q, w, metric).sum() < 0.97 * once.sum()


@pytest.mark.parametrize("book", [None, BOOK], ids=["uniform", "book"])
@pytest.mark.parametrize("block", [128, 4])
@given(seed=st.integers(0, 10_000))
def test_descent_ends_where_no_level_alone_can_be_bettered(block, book, seed):
    w, hessian, scale = problem(seed)
    metric = hessian + compensate.damping(hessian)
    q = compensate.to_levels(w / scale, (-3, 3), book)
    errors = [compensate.error(scale * q, w, metric)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compensate, "BLOCK", block)
        for _ in range(20):
            q = compensate.descended(w, metric, scale, q, (-3, 3), book)
            errors.append(compensate.error(scale * q, w, metric))
    assert all((b <= a * (1 + 1e-12)).all() for a, b in itertools.pairwise(errors))
    for column, level in itertools.product(range(6), np.arange(-3, 4) if book is None else book):
        other = q.copy()
        other[:, :, column] = level
        assert (compensate.error(scale * other, w, metric) >= errors[-1] * (1 - 1e-12)).all()


def test_a_finer_scale_is_taken_where_it_pays():
    w, hessian, scale = problem(0)
    _, factor = compensate.compensated(w, hessian, 2 * scale, (-3, 3), None)
    assert factor.shape == (2, 3, 1)
    assert factor.max() < 1.0


@given(seed=st.integers(0, 10_000))
def test_the_target_is_a_ridge_regression_onto_the_float_outputs(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 50, 4))
    z = x + 0.3 * rng.standard_normal(x.shape)
    x, z = x - x.mean(axis=1), z - z.mean(axis=1)
    w = rng.standard_normal((1, 2, 4))
    hessian, cross = z.transpose(0, 2, 1) @ z / 50, x.transpose(0, 2, 1) @ z / 50
    extra = compensate.damping(hessian)
    found = compensate.target(w, hessian, cross, extra)[0]
    root = np.sqrt(50 * extra[0])
    inputs = np.concatenate([z[0], root])
    outputs = np.concatenate([x[0] @ w[0].T, root @ w[0].T])
    wanted, *_ = np.linalg.lstsq(inputs, outputs, rcond=None)
    np.testing.assert_allclose(found, wanted.T, rtol=1e-8, atol=1e-8)


def test_the_target_of_undisturbed_inputs_is_the_weight():
    w, hessian, _ = problem(1)
    np.testing.assert_allclose(
        compensate.target(w, hessian, hessian, compensate.damping(hessian)), w, atol=1e-12
    )


def test_inputs_that_never_move_leave_rounding_to_nearest():
    w, hessian, scale = problem(2)
    q, _ = compensate.compensated(
        w, compensate.damping(0 * hessian), scale, (-3, 3), None, factors=np.ones(1)
    )
    np.testing.assert_array_equal(q, compensate.to_levels(w / scale, (-3, 3), None))


def test_few_rows_damp_more():
    hessian = np.eye(4)[None]
    assert compensate.damping(hessian, 4000)[0, 0, 0] == compensate.DAMP
    assert compensate.damping(hessian, 40)[0, 0, 0] == pytest.approx(0.05)
    assert compensate.damping(hessian, 40, compensate.AIM)[0, 0, 0] == pytest.approx(0.8)
    assert compensate.damping(hessian, 0)[0, 0, 0] == 2


def test_a_hessian_that_is_not_quite_positive_is_damped_until_it_is():
    w, _, scale = problem(3, groups=1)
    direction = np.ones((6, 1)) / np.sqrt(6)
    hessian = (np.eye(6) - 1.001 * direction @ direction.T)[None]
    q = compensate.gptq(w, hessian, scale, (-3, 3), None)
    assert np.isfinite(q).all()
    assert np.abs(q).max() <= 3
