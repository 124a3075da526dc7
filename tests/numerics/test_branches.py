"""Convolutions whose results are added are one whose weight is the sum of theirs."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxq.numerics.branches import placed, products, union
from onnxq.numerics.unfold import Window
from tests.graphs import build, run


def text(window):
    parts = {"group": window.groups, "strides": window.strides, "dilations": window.dilations,
             "pads": window.pads}  # fmt: skip
    return ",".join(
        f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in parts.items()
    ).replace(" ", "")


@given(data=st.data())
def test_one_convolution_computes_the_sum(data):
    def pair(low, high):
        return tuple(data.draw(st.integers(low, high)) for _ in range(2))

    strides, windows, weights = pair(1, 2), [], []
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    slack = pair(-1, 1)
    for _ in range(2):
        kernel, dilations, groups = pair(1, 4), pair(1, 2), data.draw(st.sampled_from([1, 2, 4]))
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        before = [data.draw(st.integers(0, r + 1)) for r in reach]
        behind = [r - b + s for r, b, s in zip(reach, before, slack, strict=True)]
        assume(min(behind) >= 0)
        windows.append(Window(kernel, strides, dilations, (*before, *behind), groups))
        weights.append(rng.standard_normal((4, 4 // groups, *kernel)).astype(np.float32))
    whole = union(*windows)
    assume(whole is not None)
    assert whole == union(*reversed(windows))
    assert whole.groups == min(window.groups for window in windows)
    total = sum(placed(w, window, whole) for w, window in zip(weights, windows, strict=True))
    a, b = windows
    proto = build(
        "(float[1,4,11,12] x) => (float[] apart, float[] together) "
        f"{{ a = Conv<{text(a)}>(x, u) b = Conv<{text(b)}>(x, v) apart = Add(a, b) "
        f"together = Conv<{text(whole)}>(x, w) }}",
        u=weights[0], v=weights[1], w=total,
    )  # fmt: skip
    x = rng.standard_normal((1, 4, 11, 12)).astype(np.float32)
    found = run(proto, {"x": x})
    np.testing.assert_allclose(found["together"], found["apart"], rtol=1e-4, atol=1e-4)


def conv(kernel, pads, *, strides=(1, 1), dilations=(1, 1), groups=1):
    return Window(kernel, strides, dilations, pads, groups)


SQUARE = conv((3, 3), (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("other", "whole"),
    [
        (conv((1, 1), (0, 0, 0, 0)), SQUARE),
        (conv((1, 1), (0, 0, 0, 0), groups=8), SQUARE),
        (conv((1, 1), (0, 0, 0, 0), dilations=(2, 2)), SQUARE),
        (conv((1, 3), (0, 1, 0, 1)), SQUARE),
        (conv((5, 5), (2, 2, 2, 2)), conv((5, 5), (2, 2, 2, 2))),
        (conv((1, 5), (0, 2, 0, 2)), conv((3, 5), (1, 2, 1, 2))),
        (conv((2, 2), (1, 1, 0, 0)), SQUARE),
        (conv((1, 1), (1, 1, 1, 1)), None),  # larger results
        (conv((3, 3), (0, 0, 0, 0)), None),  # smaller ones
        (conv((1, 1), (0, 0, 0, 0), strides=(2, 2)), None),
        (conv((3, 3), (2, 2, 2, 2), dilations=(2, 2)), None),
        (conv((3, 3), "SAME_UPPER"), None),
        (Window((3,), (1,), (1,), (1, 1)), None),
    ],
)
def test_what_has_room_for_both(other, whole):
    assert union(SQUARE, other) == whole
    assert union(other, SQUARE) == whole


def test_taps_that_lie_between_those_of_the_other_have_no_place():
    wide = conv((3, 3), (2, 2, 2, 2), dilations=(2, 2))
    assert union(wide, conv((1, 1), (1, 1, -1, -1))) is None


def test_groups_have_to_nest():
    assert union(conv((1, 1), (0,) * 4, groups=4), conv((1, 1), (0,) * 4, groups=6)) is None
    nested = union(conv((1, 1), (0,) * 4, groups=2), conv((1, 1), (0,) * 4, groups=6))
    assert nested is not None
    assert nested.groups == 2


def test_products_of_a_result():
    assert products(SQUARE, 16) == 144
    assert products(conv((5, 3), (2, 1, 2, 1), groups=16), 16) == 15
