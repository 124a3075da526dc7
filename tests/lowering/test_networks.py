"""Whole networks as torch modules compute what onnxruntime computes."""

from pathlib import Path

import numpy as np
import pytest
import zoo

from onnxq.graph.loading import load
from onnxq.runtime import Session

torch = pytest.importorskip("torch")
from onnxq.lowering import Lowered  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "models"
ZOO = [zoo.ROOT / file["file"] for entry in zoo.entries() for file in (entry, *entry["exports"])]
OTHERS = [SHARED / "resnet20_cifar10.onnx", SHARED / "version-RFB-320.onnx"]

# Of the largest number of an output.
TOLERANCE = 1e-4


@pytest.mark.parametrize("path", [*ZOO, *OTHERS], ids=lambda path: path.stem)
def test_a_network_computes_what_it_does_in_onnxruntime(path):
    if not path.exists():
        pytest.skip("the shared models are not here")
    model = load(path)
    if model.opset < 11:
        model.raise_opset(13)
    rng = np.random.default_rng(0)
    inputs = {
        tensor.name: rng.standard_normal(
            [size if isinstance(size, int) else 2 for size in tensor.shape], np.float32
        )
        for tensor in model.graph.inputs
    }
    expected = Session(path).run(inputs)
    lowered = Lowered(model)
    with torch.no_grad():
        found = lowered(*[torch.from_numpy(inputs[name]) for name in lowered.inputs])
    for name, values in zip(lowered.outputs, found, strict=True):
        np.testing.assert_allclose(
            values.numpy(), expected[name], rtol=0, atol=TOLERANCE * np.abs(expected[name]).max()
        )
