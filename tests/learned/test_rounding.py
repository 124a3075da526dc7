"""Rounding that is learned: where it begins, what it may become, and what indecision costs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxq.numerics import affine
from onnxq.spec import QTensor
from tests.learned.test_quantizers import FIXED, WEIGHTS, equal, quantized, weight

torch = pytest.importorskip("torch")
from onnxq.learned.rounding import (  # noqa: E402
    LEANING,
    SoftRounding,
    inverse,
    rectified_sigmoid,
)
from onnxq.learned.unit import BLUNT, SETTLED, SHARP, WARMUP, sharpness  # noqa: E402


def moved(plan, seed, farthest):
    """The plan with codes up to so many levels away, as a compensation of errors leaves them."""
    rng = np.random.default_rng(seed)
    ends = (0, len(plan.book) - 1) if plan.book is not None else plan_ends(plan)
    by = rng.integers(-farthest, farthest + 1, plan.codes.shape)
    codes = (plan.codes.astype(np.int64) + by).clip(*ends)
    return QTensor(codes.astype(plan.codes.dtype), plan.params, plan.book)


def plan_ends(plan):
    return plan.params.spec.qmin, plan.params.spec.qmax


def levels_of(plan):
    return plan.codes if plan.book is None else plan.book[plan.codes]


def soft(rounding):
    """The weight in training."""
    rounding.train()
    with torch.no_grad():
        return rounding().numpy()


def hard(rounding):
    """The weight as it is judged."""
    rounding.eval()
    with torch.no_grad():
        return rounding().numpy()


CASES = WEIGHTS | {"farthest": st.sampled_from([0, 0, 1, 4])}


def case(kind, axis, group, integer, seed, coarse, farthest):
    w = weight(seed, coarse)
    return w, moved(quantized(w, *kind, axis, group, integer), seed, farthest)


@given(**CASES)
@settings(FIXED, max_examples=200)
def test_rounding_begins_with_the_codes_of_the_plan(**options):
    w, plan = case(**options)
    rounding = SoftRounding(plan, w)
    equal(rounding.plan(), plan)
    np.testing.assert_array_equal(hard(rounding), affine.values(plan).reshape(w.shape))
    assert torch.isfinite(rounding.latent).all()


@given(seed=st.integers(0, 1000), up=st.booleans())
@settings(FIXED, max_examples=40)
def test_codes_stay_within_ends_of_their_own(seed, up):
    rng = np.random.default_rng(seed)
    w = weight(seed, False)
    plan = quantized(w, "uniform", 8, 0, 0)
    codes = plan.codes.astype(np.int16)
    # A weight may always become 0.
    ends = (codes - 100).clip(-127, 0), (codes + rng.integers(0, 2, codes.shape)).clip(0, 127)
    rounding = SoftRounding(plan, w, tuple(end.astype(np.int16) for end in ends))
    equal(rounding.plan(), plan)
    with torch.no_grad():
        rounding.latent.fill_(10.0 if up else -10.0)
    there = rounding.plan().codes
    assert (there >= ends[0]).all()
    assert (there <= ends[1]).all()
    assert (np.abs(there - codes) <= 1).all()
    assert (there != codes).any()


@given(**CASES)
@settings(FIXED, max_examples=100)
def test_a_weight_goes_no_farther_than_to_the_neighbour_on_the_side_of_the_float_weight(**options):
    w, plan = case(**options)
    rounding = SoftRounding(plan, w)
    found = []
    for sign in (-1, 1):
        with torch.no_grad():
            rounding.latent.fill_(10.0 * sign)
        found.append(rounding.plan())
        np.testing.assert_array_equal(hard(rounding), affine.values(found[-1]).reshape(w.shape))
        np.testing.assert_array_equal(soft(rounding), hard(rounding))
    down, up = (x.codes.astype(np.int64) for x in found)
    first = plan.codes.astype(np.int64)
    assert (up - down == 1).all()
    assert ((first == down) | (first == up)).all()
    # The float weight lies between both, or on that side of them on which no level is left.
    u = w.reshape(first.shape).astype(np.float64) / affine.scales(plan)
    lower, upper = (levels_of(x).astype(np.float64) for x in found)
    low, high = (0, len(plan.book) - 1) if plan.book is not None else plan_ends(plan)
    slack = 1e-6 * np.abs(u)
    away = (first == down) & (u < lower - slack)
    assert (down[away] == low).all()
    away = (first == up) & (u > upper + slack)
    assert (up[away] == high).all()


def middles(u, plan):
    """The middle of two levels that is nearest to each value."""
    ends = plan_ends(plan)
    levels = np.arange(ends[0], ends[1] + 1) if plan.book is None else plan.book
    between = (levels[1:] + levels[:-1]) / 2
    return between[np.abs(u[..., None] - between).argmin(axis=-1)]


@given(**WEIGHTS)
@settings(FIXED, max_examples=60)
def test_what_is_rounded_to_nearest_begins_as_the_float_weight_it_is(**options):
    w, plan = case(**options, farthest=0)
    assume(not options["coarse"])
    u = w.reshape(plan.codes.shape) / affine.scales(plan)
    ends = plan_ends(plan) if plan.book is None else (plan.book[0], plan.book[-1])
    inside = (u.clip(*ends) * affine.scales(plan)).reshape(w.shape)
    # A tie that was rounded down begins below the middle, or else it would be rounded up.
    found, tie = soft(SoftRounding(plan, w)), np.isclose(u, middles(u, plan)).reshape(w.shape)
    np.testing.assert_allclose(found[~tie], inside[~tie], rtol=1e-4, atol=1e-5)


@given(**WEIGHTS)
@settings(FIXED, max_examples=60)
def test_what_a_compensation_moved_begins_just_on_its_side(**options):
    w, plan = case(**options, farthest=1)
    rounding = SoftRounding(plan, w)
    h = rounding.upward.detach().numpy()
    u = w.reshape(h.shape) / affine.scales(plan)
    lower, gap = rounding.below.numpy(), (rounding.above - rounding.below).numpy()
    assume((gap > 0).all())
    fraction = ((u - lower) / gap).clip(0, 1)
    up = plan.codes.astype(np.int64) > rounding.floor.numpy()
    away = np.where(up, fraction < 0.5 - 1e-4, fraction > 0.5 + 1e-4)
    leaning = np.where(up, 0.5 + LEANING, 0.5 - LEANING)
    np.testing.assert_allclose(h[away], leaning[away], atol=1e-6)
    nearest = np.where(up, fraction > 0.5 + 1e-4, fraction < 0.5 - 1e-4)
    np.testing.assert_allclose(h[nearest], fraction[nearest], atol=1e-4)


def test_the_codes_that_are_away_are_the_ones_the_tests_mean():
    w, plan = case(("uniform", 4), 0, 0, True, 1, False, 1)
    u = w / affine.scales(plan)
    assert 0.3 < np.mean(np.abs(u - plan.codes) > 0.5) < 0.8


def test_h_reaches_both_ends_and_has_an_inverse():
    h = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse(h)), h)
    assert rectified_sigmoid(torch.tensor([-2.5, 2.5])).tolist() == [0.0, 1.0]
    assert inverse(torch.tensor([0.0, 1.0])).abs().max() < 2.4


def rounding_at(h):
    w, plan = case(("uniform", 4), 0, 0, True, 1, False, 0)
    rounding = SoftRounding(plan, w)
    with torch.no_grad():
        rounding.latent.copy_(inverse(torch.tensor(h)))
    return rounding


@pytest.mark.parametrize("beta", [2.0, 8.0, 20.0])
@pytest.mark.parametrize("h", [0.0, 0.04, 0.3, 0.5, 0.8, 0.96, 1.0])
def test_weights_go_down_the_slope_of_their_indecision(h, beta):
    rounding = rounding_at(h)
    before = rounding.latent.detach().clone().requires_grad_()
    (1 - (2 * rectified_sigmoid(before) - 1).abs().pow(beta)).sum().backward()
    assert rounding.undecided == float(0.05 < h < 0.95)
    rounding.decide(beta, 0.1)
    moved = rounding.latent.detach() - before.detach()
    if h in (0.0, 1.0):
        assert (moved == 0).all()
    else:
        torch.testing.assert_close(moved, -0.1 * before.grad, rtol=1e-3, atol=1e-6)
    if h in (0.3, 0.8):
        assert (moved * np.sign(h - 0.5) >= 0).all()


def test_in_training_the_weight_follows_h():
    rounding = rounding_at(0.3)
    rounding.train()
    rounding().sum().backward()
    slope = rounding.latent.grad / ((rounding.above - rounding.below) * rounding.scale)
    s = torch.sigmoid(rounding.latent.detach())
    torch.testing.assert_close(slope, 1.2 * s * (1 - s))


def test_the_price_comes_late_and_sharpens_from_the_weights_that_are_nearly_decided():
    assert [sharpness(x) for x in (0.0, 0.1, WARMUP)] == [None, None, None]
    assert sharpness(WARMUP + 1e-9) == pytest.approx(SHARP)
    assert sharpness((WARMUP + SETTLED) / 2) == pytest.approx((SHARP + BLUNT) / 2)
    assert [sharpness(x) for x in (SETTLED, 0.95, 1.0)] == [pytest.approx(BLUNT)] * 3
    betas = [sharpness(x) for x in np.linspace(0.21, 1, 50)]
    assert betas == sorted(betas, reverse=True)
