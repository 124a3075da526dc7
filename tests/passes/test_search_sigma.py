"""Sigma by the error of the output: the best of the grid, where that is measured by running it."""

import numpy as np
import pytest

from onnxq.graph.layers import layers
from onnxq.numerics import oaq
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.search_sigma import SearchSigma
from tests.graphs import build
from tests.passes.layerwise import LAYERS, results, samples, walked
from tests.passes.test_correct_bias import NETWORK


@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise", "gemm", "matmul"])
@pytest.mark.parametrize("levels", ["uniform", "apot"])
def test_no_other_sigma_leaves_less_of_the_output(kind, levels):
    text, weights = LAYERS[kind]
    data, flags = samples(build(text, **weights)), {"bits": 3, "levels": levels}
    flags |= {"act_bits": "float", "per_channel": False}
    steps = (SearchSigma(), CorrectBias())
    prepared, quantized, outcomes = walked(build(text, **weights), *steps, data=data, **flags)
    ((y, found),) = results(prepared, quantized, data).values()
    (layer,) = layers(prepared)
    errors = []
    for sigma in oaq.SIGMAS:
        scaled = dict(weights)
        clip = np.abs(layer.weight).max() / sigma
        grid = np.array([0, 1 / 4, 1 / 2, 1]) if levels == "apot" else np.arange(4) / 3
        grid = clip * np.unique([-grid, grid])
        nearest = grid[np.abs(layer.weight[..., None] - grid).argmin(axis=-1)]
        scaled["w"] = nearest.astype(np.float32)
        if layer.bias is not None:
            scaled["b"] = layer.bias
        one, _, _ = walked(build(text, **scaled), data=data, bits=8, act_bits="float")
        ((y_q, _),) = results(one, one, data).values()
        errors.append(((y_q - y - (y_q - y).mean(axis=0)) ** 2).sum())
    assert ((found - y) ** 2).sum() <= min(errors) * 1.01
    (edit,) = outcomes["search-sigma"].edits
    assert edit.what.startswith(f"sigma {oaq.SIGMAS[int(np.argmin(errors))]:.2f}")


def test_every_channel_has_its_own_where_it_has_a_scale():
    *_, outcomes = walked(NETWORK, SearchSigma(), CorrectBias(), bits=3)
    lows = [edit.what.split()[1] for edit in outcomes["search-sigma"].edits]
    highs = [edit.what.split()[3] for edit in outcomes["search-sigma"].edits]
    assert len(lows) == 4
    assert lows != highs


def test_groups_of_inputs_keep_their_scales():
    flags = {"bits": 3, "act_bits": "float", "group_size": 4}
    *_, outcomes = walked(NETWORK, SearchSigma(), CorrectBias(), **flags)
    whys = {skip.why for skip in outcomes["search-sigma"].skips}
    assert whys == {"groups of its inputs have scales of their own"}
