"""Places where a factor of each channel would fit, if what stands there were written as a layer.

The Add of a number is also a 1x1 depthwise Conv, and one that multiplies by 1 may stand before a
Sigmoid. Both have a weight of each channel, and factors end or begin there. On integers that takes
longer than a sum: within a block of HardSwish and depthwise layers a tenth to a fifth.
"""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.graph.channels import Channels
from onnxq.graph.model import Model
from onnxq.graph.placement import without_products
from onnxq.graph.regions import located
from onnxq.graph.tensors import is_number
from onnxq.spec import Floats


def unlockable(model: Model) -> dict[str, Channels]:
    """Nodes that run on integers and can be written as layers, and where their data have channels.

    Behind a sum only a layer in its place tells where channels are: one after the other is tried.
    """
    trial = model.clone()
    found: dict[str, Channels] = {}
    integer = without_products(model).integer
    left = {n.name for n in model.graph.nodes if n.name in integer and _opens(n)}
    while left:
        known = located(trial)
        places = {n.name: known.get(_data(n).name) for n in trial.graph.nodes if n.name in left}
        news = {name: at for name, at in places.items() if at is not None and at.rank}
        if not news:
            break
        unlock(trial, news)
        found |= news
        left -= news.keys()
    return found


def unlock(model: Model, wanted: Mapping[str, Channels]) -> dict[str, str]:
    """Write some of the nodes that can be as layers, by their names.

    Returns:
        By the names of the new layers those of the nodes.
    """
    made: dict[str, str] = {}
    for node in [n for n in model.graph.nodes if n.name in wanted]:
        if node.op == "Add":
            _become_layer(model, node, wanted[node.name])
            made[node.name] = node.name
        else:
            made[_put_before(model, node, wanted[node.name])] = node.name
    model.tidy()
    return made


def _opens(node: gs.Node) -> bool:
    return node.op == "Sigmoid" or (node.op == "Add" and any(map(is_number, node.inputs)))


def _data(node: gs.Node) -> gs.Tensor:
    return node.inputs[int(is_number(node.inputs[0]))]


def _weight(model: Model, name: str, channels: Channels) -> gs.Constant:
    ones = np.ones((channels.count, *[1] * (channels.rank - 1)), np.float32)
    return model.constant(f"{name}_factors", ones)


def _become_layer(model: Model, node: gs.Node, channels: Channels) -> None:
    """Turn the Add of a number into a Conv."""
    data = _data(node)
    (number,) = (t.values for t in node.inputs if t is not data)
    terms: Floats = np.full(channels.count, number.reshape(()), np.float32)
    node.op, node.attrs = "Conv", {"group": channels.count}
    bias = model.constant(f"{node.name}_terms", terms)
    node.inputs = [data, _weight(model, node.name, channels), bias]


def _put_before(model: Model, node: gs.Node, channels: Channels) -> str:
    """Put a Conv before a node; its name."""
    read, weight = model.variable(f"{node.name}_read"), _weight(model, node.name, channels)
    layer = model.add("Conv", [node.inputs[0], weight], read, group=channels.count)
    node.inputs[0] = read
    return str(layer.name)
