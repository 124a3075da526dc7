"""``onnxq validate`` and ``inspect --against``: what they refuse, in one line."""

import onnx
import pytest


@pytest.fixture
def told(here):
    """A model whose metadata say nonsense of its preprocessing."""
    proto = onnx.load(here / "model.onnx")
    proto.metadata_props.add(key="onnxq.preprocess", value='{"colour": "rgb"}')
    onnx.save(proto, here / "told.onnx")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("validate model.onnx told.onnx --data calib.npz", 3, "metadata onnxq.preprocess"),
        ("inspect model.onnx --against told.onnx --data calib.npz", 3, "metadata onnxq.preprocess"),
        ("inspect model.onnx --against model.onnx --data calib.npz", 3, "no quantized layer in it"),
        ("validate model.onnx model.onnx --data val.npz --labels gone.csv", 3, "gone.csv: no such"),
        ("validate model.onnx model.onnx --data val.npz --labels labels.csv", 2, "named labels"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(told, onnxq, command, code, said):
    result = onnxq(*command.split())
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert said in line
