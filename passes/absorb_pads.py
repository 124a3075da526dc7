"""Zeros that a Pad puts around an image, and that the convolution behind it pads by itself."""

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.model import Model
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Ints


class AbsorbPads(Pass):
    """Add the borders of a Pad with zeros to those of the convolutions that alone read it."""

    name: ClassVar[str] = "absorb-pads"
    exact: ClassVar[bool] = True

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Edit the model and say what was done."""
        outcome = Outcome()
        for node in [n for n in model.graph.nodes if n.op == "Pad" and not n.domain]:
            readers = node.outputs[0].outputs
            borders = _borders(node)
            if borders is None or not all(_takes(reader, node) for reader in readers):
                continue
            if node.name in model.kept_float or model.is_output(node.outputs[0]):
                continue
            for reader in readers:
                own = reader.attrs.get("pads", [0] * borders.size)
                reader.attrs["pads"] = (np.array(own) + borders).tolist()
                reader.attrs.pop("auto_pad", None)
            model.bypass(node)
            outcome.edit(node.name, "taken over by what reads it")
        return outcome


def _borders(node: gs.Node) -> Ints | None:
    """Zeros before and behind each spatial axis, all befores first; None if there is more to it."""
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 2:
        return None
    pads, value, axes = [*node.inputs[1:], None, None][:3]
    given = value is not None and not value.is_empty()
    if axes is not None or not isinstance(pads, gs.Constant):
        return None
    if given and not (isinstance(value, gs.Constant) and not value.values.any()):
        return None
    both = pads.values.reshape(2, -1)
    return None if both[:, :2].any() or (both < 0).any() else both[:, 2:].reshape(-1)


def _takes(reader: gs.Node, node: gs.Node) -> bool:
    """Whether a node is a convolution of what a Pad returns, and pads as it is told."""
    automatic = reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    conv = reader.op == "Conv" and not reader.domain and not automatic
    data = node.outputs[0]
    return conv and reader.inputs[0] is data and all(t is not data for t in reader.inputs[1:])
