"""Where functions begin to move."""

import numpy as np

from onnxq.numerics.plateaus import flat


def test_a_function_is_flat_up_to_where_it_moves_by_its_part():
    x = np.linspace(-4, 4, 801)
    y = np.stack([np.maximum(x, 0), np.maximum(x - 2, 0), x, 0 * x], axis=1)
    last = flat([(y, 0.01)])
    assert x[last[:2]].round(2).tolist() == [0.03, 2.01]
    assert last[2:].tolist() == [7, 0]
    together = [(y[:, 1], 0.01), (y[:, 3], 0.01), (y[:, 0], 0.01)]
    assert flat(together) == last[0]
    assert flat([(y[:, 0], 0.0)]) == 400
