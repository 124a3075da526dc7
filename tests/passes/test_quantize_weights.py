"""Ranges, levels and the treatment of outliers go together in every combination."""

from typing import get_args

import numpy as np
import pytest

from onnxq.graph.loading import from_proto
from onnxq.numerics import affine, levels, oaq, ranges
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import OPTIMAL, QuantizeWeights
from onnxq.pipeline import run
from onnxq.spec import QTensor
from tests.graphs import build

W = np.random.default_rng(3).standard_t(4, (6, 8, 3, 3)).astype(np.float32)
NET = "(float[1,8,6,6] x) => (float[] y) { y = Conv(x, w) }"


def quantized(**options: object) -> QTensor:
    model = from_proto(build(NET, w=W))
    run(model, (QuantizeWeights(**options),), None)
    (weight,) = model.weights.values()
    return weight


def error(weight: QTensor) -> float:
    return float((np.abs(affine.values(weight) - W).astype(np.float64) ** 2.4).sum())


def choices(kind: type, option: str) -> tuple[str, ...]:
    return get_args(kind.model_fields[option].annotation)


def test_the_options_are_what_there_is() -> None:
    assert choices(QuantizeWeights, "range") == tuple(ranges.WEIGHT)
    assert choices(QuantizeActivations, "range") == tuple(ranges.ACTIVATION)
    assert choices(QuantizeWeights, "outliers") == ("keep", *oaq.OUTLIERS)
    assert choices(QuantizeWeights, "levels") == tuple(levels.WIDTHS)
    assert set(OPTIMAL) < set(levels.SETS)


@pytest.mark.parametrize("method", ranges.WEIGHT)
@pytest.mark.parametrize("name", levels.WIDTHS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_range_goes_with_all_levels(method: str, name: str, per_channel: bool) -> None:
    for bits in {levels.WIDTHS[name][0], levels.WIDTHS[name][1]}:
        weight = quantized(range=method, levels=name, bits=bits, per_channel=per_channel)
        assert weight.params.scale.size == (6 if per_channel else 1)
        assert np.unique(weight.codes).size <= 2**bits
        # Nothing is worse than to have no weights at all.
        assert error(weight) < float((np.abs(W.astype(np.float64)) ** 2.4).sum())


@pytest.mark.parametrize("method", ranges.WEIGHT)
@pytest.mark.parametrize("name", levels.WIDTHS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_two_products_with_activations_fit_the_sums_of_16_bits(
    method: str, name: str, per_channel: bool
) -> None:
    for bits in range(levels.WIDTHS[name][0], levels.WIDTHS[name][1] + 1):
        weight = quantized(range=method, levels=name, bits=bits, per_channel=per_channel)
        q = weight.levels.astype(int).transpose(0, 2, 3, 1).reshape(len(W), -1)
        for sign in (1, -1):
            products = 255 * np.maximum(sign * q, 0)
            assert (products[:, 1:] + products[:, :-1]).max() < 2**15


def test_weights_beside_small_ones_or_those_of_the_other_sign_have_all_codes() -> None:
    even = (np.arange(8) % 2 == 0)[:, None, None]
    alternating, apart = np.abs(W) * np.where(even, 1, -1), W * even
    for w in (alternating, apart):
        model = from_proto(build(NET, w=w.astype(np.float32)))
        run(model, (QuantizeWeights(),), None)
        (weight,) = model.weights.values()
        assert (np.abs(weight.codes).max(axis=(1, 2, 3)) == 127).all()
    assert 64 < np.abs(quantized().codes.astype(int)).max() < 127


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        ("(float[1,8,6,6] x) => (float[] y) { y = Conv <group = 8> (x, w) }", (8, 1, 3, 3)),
        ("(float[1,8,6,6] x) => (float[] y) { y = ConvTranspose <group = 8> (x, w) }",
         (8, 1, 3, 3)),
        ("(float[9,5] x) => (float[] y) { y = Gemm <transA = 1> (x, w) }", (9, 8)),
        ("(float[9,5] x) => (float[] y) { y = MatMul(w, x) }", (8, 9)),
        ("(float[2,5,9] x) => (float[] y) { y = MatMul(x, w) }", (2, 9, 4)),
    ],
)  # fmt: skip
def test_what_no_kernel_adds_in_16_bits_has_all_codes(net: str, shape: tuple[int, ...]) -> None:
    model = from_proto(build(net, w=np.abs(W[:1].reshape(shape))))
    run(model, (QuantizeWeights(),), None)
    (weight,) = model.weights.values()
    assert np.abs(weight.codes).max() == 127
    assert np.abs(quantized(book="float").levels).max() == 127


@pytest.mark.parametrize("name", ["uniform", "pot", "apot", "post"])
def test_the_searched_factor_is_that_of_the_levels_in_use(name: str) -> None:
    options = {"levels": name, "bits": 4, "per_channel": False, "book": "float"}
    found = quantized(range="oaq-mse", **options)
    points = levels.uniform(4) if name == "uniform" else levels.SETS[name](4)
    m = np.abs(W.astype(np.float64)).max()
    errors = []
    for sigma in 1 + 0.05 * np.arange(61):
        clip = m / sigma
        nearest = np.abs(W.ravel()[:, None] - clip * points).argmin(axis=1)
        errors.append(float((np.abs(W.ravel() - clip * points[nearest]) ** 2.4).sum()))
    assert error(found) == pytest.approx(min(errors), rel=1e-6)
    assert error(found) < error(quantized(range="max", **options))


def test_clusters_of_the_least_error_are_relative_to_the_largest_weights() -> None:
    options = {"levels": "kmeans", "bits": 4}
    tuned, widest = (quantized(range=method, **options) for method in ("mse", "max"))
    np.testing.assert_array_equal(affine.values(tuned), affine.values(widest))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_channels_with_outliers_share_clusters_with_others_by_their_bulk(bits: int) -> None:
    """W is heavy-tailed: the largest weight says little of where the others of a channel lie."""
    options = {"levels": "kmeans", "bits": bits, "book": "float"}
    aware, widest = (quantized(range=method, **options) for method in ("oaq-mse", "max"))
    sigma = affine.scales(widest)[:, 0, 0, 0] / affine.scales(aware)[:, 0, 0, 0]
    assert np.ptp(sigma) > 0.05
    assert error(aware) < error(widest)


@pytest.mark.parametrize("method", ["oaq", "aciq", "oaq-mse"])
def test_clusters_of_a_whole_layer_are_the_same_relative_to_anything(method: str) -> None:
    options = {"levels": "kmeans", "bits": 3, "per_channel": False}
    near, far = (quantized(range=name, **options) for name in (method, "max"))
    np.testing.assert_allclose(affine.values(near), affine.values(far), rtol=1e-6)


@pytest.mark.parametrize("form", oaq.OUTLIERS)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["uniform", "pot", "kmeans"])
def test_outliers_drawn_in_stay_so(form: str, per_channel: bool, name: str) -> None:
    drawn_in = oaq.OUTLIERS[form](W, 0 if per_channel else None)
    options = {"levels": name, "bits": 4, "per_channel": per_channel}
    found = quantized(outliers=form, **options)
    model = from_proto(build(NET, w=drawn_in))
    run(model, (QuantizeWeights(**options),), None)
    (expected,) = model.weights.values()
    np.testing.assert_array_equal(affine.values(found), affine.values(expected))
    assert (affine.values(found) != affine.values(quantized(**options))).any()


def test_outliers_of_groups_are_those_of_each_group() -> None:
    rows = W.reshape(6, 2, 4, 9).reshape(12, 36)
    drawn_in = oaq.compress(rows, 0).reshape(W.shape)
    found = quantized(outliers="compress", bits=4, group_size=4)
    model = from_proto(build(NET, w=drawn_in))
    run(model, (QuantizeWeights(bits=4, group_size=4),), None)
    np.testing.assert_array_equal(found.codes, model.weights[next(iter(model.weights))].codes)


def test_a_layer_of_one_weight_for_each_channel_has_a_scale_for_each() -> None:
    w = np.geomspace(1e-3, 1.0, 8).astype(np.float32).reshape(8, 1, 1, 1)
    net = "(float[1,8,6,6] x) => (float[] y) { y = Conv<group=8>(x, w) }"
    model = from_proto(build(net, w=w))
    run(model, (QuantizeWeights(bits=2, per_channel=False),), None)
    (weight,) = model.weights.values()
    np.testing.assert_allclose(affine.values(weight), w, rtol=1e-6)


@pytest.mark.parametrize("name", levels.WIDTHS)
@pytest.mark.parametrize("dead", [0, 1, 3])
def test_dead_channels_are_told(name: str, dead: int) -> None:
    w = W.copy()
    w[:dead] = 0
    model = from_proto(build(NET, w=w))
    bits = levels.WIDTHS[name][1]
    outcome = run(model, (QuantizeWeights(levels=name, bits=bits),), None)["quantize-weights"]
    told = [remark.what for remark in outcome.remarks if remark.where != "model"]
    assert told == ([f"{dead} of 6 channels are dead: all zero"] if dead else [])
