"""Fake quantizers round as the numpy ones do, and their gradients are those of LSQ."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.numerics import affine
from onnxq.numerics import levels as sets
from onnxq.spec import QParams, QTensor, activation_spec, weight_spec

torch = pytest.importorskip("torch")
from onnxq.learned.quantizers import ActivationQuantizer, WeightQuantizer, nearest  # noqa: E402

FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=60)
# Powers of two, on which multiples of half a step are ties in float32 too, and others.
SCALES = st.sampled_from([0.25, 1.0, 2.0**-7, 0.1, 1 / 3, 0.013, 1e-6, 3e4])
STEPS = st.one_of(
    st.integers(-300, 300).map(lambda n: n / 2),
    st.floats(-300, 300, width=32),
    st.sampled_from([0.5 - 2.0**-25, 1.5 + 2.0**-22, -2.5 - 2.0**-21, 1e30]),
)
WIDTHS = [(name, bits) for name, ends in sets.WIDTHS.items() for bits in sorted(set(ends))]


def values(shape, scale):
    return hnp.arrays(np.float64, shape, elements=STEPS).map(
        lambda x: (x * scale).clip(-1e37, 1e37).astype(np.float32)
    )


@given(data=st.data(), bits=st.integers(2, 8), scale=SCALES)
@FIXED
def test_an_activation_is_rounded_as_in_numpy(data, bits, scale):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    params = QParams(np.float32(scale), np.uint8(zero_point), None, activation_spec(bits))
    x = data.draw(values((40,), scale))
    grid = ActivationQuantizer(params)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            grid(torch.from_numpy(x)).detach().numpy(), affine.fake_quantize(x, params)
        )
    again = grid.plan()
    assert (again.scale, again.zero_point, again.spec) == (params.scale, zero_point, params.spec)
    assert again.scale.dtype == np.float32
    assert again.scale.shape == ()


def test_an_activation_moved_through_a_product_lies_on_a_grid_times_its_factor():
    params = QParams(np.float32(0.1), np.uint8(7), None, activation_spec(4))
    x = np.linspace(-3, 3, 61, dtype=np.float32)
    scaled = QParams(params.scale * np.float32(0.3), params.zero_point, None, params.spec)
    found = ActivationQuantizer(params)(torch.from_numpy(x), 0.3)
    np.testing.assert_array_equal(found.detach().numpy(), affine.fake_quantize(x, scaled))


def quantized(w, name, bits, axis, group, integer=True):
    """A weight (4, 6, 2) on the levels of a set; groups are of ``group`` input channels."""
    spec = weight_spec(bits, axis is not None)
    if group:
        w = w.reshape(4, 6 // group, group, 2)
    if name != "uniform":
        found = sets.quantize(w.reshape(-1, group * 2) if group else w, name, spec,
                              0 if group else axis, None, integer)  # fmt: skip
        if not group:
            return found
        params = QParams(found.params.scale.reshape(4, -1, 1, 1), np.zeros(1, np.int8), None, spec)
        return QTensor(found.codes.reshape(w.shape), params, found.book)
    axes = (2, 3) if group else affine.reduce_axes(3, axis)
    largest = np.abs(w).max(axis=axes, keepdims=bool(group))
    params = affine.qparams(-largest, largest, spec, None if group else axis)
    return QTensor(affine.quantize(w, params), params)


WEIGHTS = {
    "kind": st.sampled_from(WIDTHS),
    "axis": st.sampled_from([None, 0, 1]),
    "group": st.sampled_from([0, 0, 2, 3]),
    "integer": st.booleans(),
    "seed": st.integers(0, 2**16),
    "coarse": st.booleans(),
}


def weight(seed, coarse):
    """Normal numbers; ``coarse`` ones are quarters of a step of a 3-bit grid: many are ties."""
    w = np.random.default_rng(seed).standard_normal((4, 6, 2))
    w = np.rint(4 * w).clip(-12, 12) / 4 if coarse else w
    w[0, 0, 0], w[1, 1] = 3.0, 0.0
    return w.astype(np.float32)


def equal(found, wanted):
    """Whether two plans of a weight are the same, bit for bit."""
    assert found.codes.dtype == wanted.codes.dtype
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.params.scale, wanted.params.scale)
    assert found.params.scale.dtype == np.float32
    assert found.params.axis == wanted.params.axis
    np.testing.assert_array_equal(found.book, wanted.book)


@given(**WEIGHTS)
@settings(FIXED, max_examples=150)
def test_a_weight_is_rounded_as_in_numpy_and_given_back_as_it_was(
    kind, axis, group, integer, seed, coarse
):
    w = weight(seed, coarse)
    plan = quantized(w, *kind, axis, group, integer)
    found = WeightQuantizer(plan, w)
    with torch.no_grad():
        rounded = found().numpy()
    np.testing.assert_array_equal(rounded, affine.values(plan).reshape(w.shape))
    equal(found.plan(), plan)


@given(**WEIGHTS)
@settings(FIXED, max_examples=60)
def test_training_begins_with_the_float_weight_where_that_is_what_was_rounded(
    kind, axis, group, integer, seed, coarse
):
    assume(not coarse)
    w = weight(seed, coarse)
    plan = quantized(w, *kind, axis, group, integer)
    found = WeightQuantizer(plan, w)
    latent = (found.latent * found.step).detach().numpy()
    np.testing.assert_allclose(latent, w.reshape(latent.shape), rtol=1e-6)


@given(**WEIGHTS)
@settings(FIXED, max_examples=60)
def test_a_compensated_weight_begins_in_the_middle_of_its_steps_and_is_given_back_as_it_was(
    kind, axis, group, integer, seed, coarse
):
    w = weight(seed, coarse)
    plan = quantized(w, *kind, axis, group, integer)
    rng = np.random.default_rng(seed)
    low, high = (0, len(plan.book) - 1) if plan.book is not None else (-1, 1)
    codes = rng.integers(low, high + 1, plan.codes.shape).astype(plan.codes.dtype)
    assume(not np.array_equal(codes, plan.codes))
    moved = QTensor(codes, plan.params, plan.book)
    found = WeightQuantizer(moved, w)
    middle = (found.latent * found.step / found.origin).detach().numpy()
    np.testing.assert_allclose(middle, moved.levels, rtol=1e-6)
    with torch.no_grad():
        np.testing.assert_array_equal(found().numpy(), affine.values(moved).reshape(w.shape))
    equal(found.plan(), moved)


def test_a_weight_that_a_range_cut_off_was_rounded_and_not_compensated():
    """Its scale may then be larger, for what neighbours of 8 bits add up to."""
    w = np.random.default_rng(0).standard_normal((4, 6, 2)).astype(np.float32)
    w[:, 0, 0] = 4.0
    params = affine.qparams(*(np.full(4, 3.0) * np.array([[-1], [1]])), weight_spec(8), 0)
    coarser = replace(params, scale=params.scale * np.float32(1.4))
    plan = QTensor(affine.quantize(affine.clip(w, params), coarser), coarser)
    assert (plan.codes != affine.quantize(w, coarser)).any()
    found = WeightQuantizer(plan, w)
    latent = (found.latent * found.step).detach().numpy()
    np.testing.assert_allclose(latent[np.abs(w) < 3], w[np.abs(w) < 3], rtol=1e-6)
    equal(found.plan(), plan)


@given(seed=st.integers(0, 1000))
@settings(FIXED, max_examples=40)
def test_codes_of_a_weight_stay_within_ends_of_their_own(seed):
    rng = np.random.default_rng(seed)
    w = weight(seed, False)
    plan = quantized(w, "uniform", 8, 0, 0)
    codes = plan.codes.astype(np.int16)
    ends = tuple(
        (codes + sign * rng.integers(0, 9, codes.shape)).clip(-127, 127) for sign in (-1, 1)
    )
    ends = ends[0].astype(np.int16), ends[1].astype(np.int16)
    found = WeightQuantizer(plan, w, ends)
    equal(found.plan(), plan)
    with torch.no_grad():
        found.latent.add_(torch.from_numpy(rng.normal(0, 20, codes.shape).astype(np.float32)))
        found.stretch.add_(0.05)
    there = found.plan()
    assert (there.codes >= ends[0]).all()
    assert (there.codes <= ends[1]).all()
    assert (there.codes == ends[1]).any()
    found().sum().backward()
    with torch.no_grad():
        np.testing.assert_array_equal(found().numpy(), affine.values(there).reshape(w.shape))
    cut = (there.codes == ends[0]) | (there.codes == ends[1])
    assert (found.latent.grad.numpy()[~cut] > 0).all()
    assert (found.stretch.grad.numpy() != 0).any()


def test_a_weight_whose_memory_is_not_in_order_is_taken_as_well():
    w = np.asfortranarray(weight(0, False).T)
    w.flags.writeable = False
    params = affine.qparams(*(np.float32(3.0) * np.array([-1, 1])), weight_spec(4, False))
    plan = QTensor(affine.quantize(w, params), params)
    equal(WeightQuantizer(plan, w).plan(), plan)


def test_levels_are_rounded_to_down_from_the_middle_and_codes_to_even():
    u = torch.tensor([0.5, 1.5, 2.5, -0.5, 9.0, -9.0])
    assert nearest(u.clone(), -3.0, 3.0).tolist() == [0, 2, 2, 0, 3, -3]
    book = torch.tensor([-3.0, 0.0, 1.0, 2.0])
    assert nearest(u.clone(), -3.0, 2.0, book).tolist() == [0, 1, 2, 0, 2, -3]


# -- gradients ---------------------------------------------------------------------------------


def slopes(u, low, high, rounded):
    """What LSQ says of d(s P(x / s)) / dx and / ds at u = x / s."""
    inside = (u > low) & (u < high)
    return inside.astype(np.float64), np.where(inside, rounded - u, rounded)


def test_the_gradients_of_an_activation_are_those_of_lsq():
    params = QParams(np.float32(0.25), np.uint8(5), None, activation_spec(4))
    grid = ActivationQuantizer(params)
    u = np.array([-7.3, -4.6, -1.2, 0.0, 0.4, 3.7, 9.9, 10.1, 40.0])
    weights = np.linspace(0.5, 2.0, u.size)
    x = torch.tensor(0.25 * u, dtype=torch.float32, requires_grad=True)
    (torch.tensor(weights) * grid(x)).sum().backward()
    dx, ds = slopes(u, -5, 10, np.rint(u).clip(-5, 10))
    np.testing.assert_allclose(x.grad.numpy(), weights * dx, rtol=1e-6)
    # s = s_0 e^t: dL/dt = s dL/ds at t = 0.
    np.testing.assert_allclose(grid.stretch.grad.item(), 0.25 * np.sum(weights * ds), rtol=1e-5)


def test_what_lies_on_the_outermost_levels_is_inside():
    params = QParams(np.float32(0.25), np.uint8(0), None, activation_spec(4))
    grid, u = ActivationQuantizer(params), np.array([-0.01, 0.0, 15.0, 15.01])
    x = torch.tensor(0.25 * u, dtype=torch.float32, requires_grad=True)
    grid(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    w = np.array([[-0.7, 0.1, 0.7]], np.float32)
    ends = affine.qparams(w.min(), w.max(), weight_spec(4, False))
    found = WeightQuantizer(QTensor(np.array([[-7, 1, 7]], np.int8), ends, None), w)
    found().sum().backward()
    assert (found.latent.grad != 0).all()


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slope", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_scale_does_not_depend_on_the_order_in_memory(order, slope):
    """Nor do large terms that cancel swallow it."""
    params = QParams(np.float32(0.05), np.uint8(100), None, activation_spec(8))
    grid, rng = ActivationQuantizer(params), np.random.default_rng(0)
    x, g = 3 * rng.standard_normal((4, 6, 5, 7)), 1 + rng.standard_normal((4, 6, 5, 7))
    given = torch.tensor(x, dtype=torch.float32).contiguous(memory_format=order)
    grid(given.requires_grad_()).backward(torch.tensor(g).float().contiguous(memory_format=slope))
    u = given.detach().numpy().astype(np.float64) / np.float64(np.float32(0.05))
    _, ds = slopes(u, -100, 155, np.rint(u).clip(-100, 155))
    np.testing.assert_allclose(grid.stretch.grad.item(), 0.05 * np.sum(g * ds), rtol=1e-4)


def test_the_gradient_of_a_grid_times_a_factor_is_that_of_its_scale():
    params = QParams(np.float32(0.25), np.uint8(5), None, activation_spec(4))
    grid = ActivationQuantizer(params)
    u = np.array([-7.3, 0.4, 3.7, 40.0])
    grid(torch.tensor(0.5 * u, dtype=torch.float32), 2.0).sum().backward()
    _, ds = slopes(u, -5, 10, np.rint(u).clip(-5, 10))
    np.testing.assert_allclose(grid.stretch.grad.item(), 0.5 * np.sum(ds), rtol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", [("uniform", 3), ("post", 4), ("ternary", 2), ("binary", 1)])
def test_the_gradients_of_a_weight_are_those_of_lsq(kind, axis):
    w = weight(3, False)
    plan = quantized(w, *kind, axis, 0)
    scale = affine.broadcast(plan.params.scale, 3, axis) * np.float32(0.6)  # some lie outside
    params = replace(plan.params, scale=np.float32(0.6) * plan.params.scale)
    u = w.astype(np.float64) / scale
    if plan.book is None:
        codes, step = affine.quantize(w, params), 1.0
        rounded, low, high = codes, params.spec.qmin, params.spec.qmax
    else:
        codes = sets.nearest(u, plan.book.astype(np.float64))
        rounded, low, high = plan.book[codes], plan.book[0], plan.book[-1]
        step = np.diff(plan.book.astype(np.float64)).mean()
    found = WeightQuantizer(QTensor(codes, params, plan.book), w)
    g = np.random.default_rng(1).standard_normal(w.shape)
    (torch.from_numpy(g) * found()).sum().backward()
    dx, ds = slopes(u, low, high, rounded.astype(np.float64))
    # A latent is in steps between levels: w = s_0 step latent.
    np.testing.assert_allclose(found.latent.grad.numpy(), g * dx * scale * step, rtol=1e-5)
    axes = affine.reduce_axes(3, axis)
    expected = (g * ds * scale).sum(axis=axes)
    np.testing.assert_allclose(
        found.stretch.grad.numpy().reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
    )


def test_a_scale_of_groups_gets_the_gradient_of_its_group():
    w = weight(5, False)
    found = WeightQuantizer(quantized(w, "uniform", 4, 0, 3), w)
    found()[2, 3:].sum().backward()
    assert (found.stretch.grad != 0).nonzero().tolist() == [[2, 1, 0, 0]]
