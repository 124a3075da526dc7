"""Whether the passes that are to leave the float function alone did."""

import contextlib

import numpy as np

from onnxq.errors import InputError, PassError
from onnxq.graph.model import Model
from onnxq.runtime import Feeds, Session, random_feeds

# Change of a float output, relative to its largest value, that reordered rounding explains.
TOLERANCE, TOLERANCE_HALF = 1e-3, 2e-2
# Times what onnxruntime's optimizations change, which the exact passes may change in any case.
MAGNIFIED = 20.0
# Height and width of random images where the model leaves them open: one pixel hides what moves.
SIDE = 64


def largest_change(original: Session, prepared: Model, feeds: Feeds | None) -> float | None:
    """Largest change of any output by the exact passes, relative to that output's largest value.

    A network may magnify rounding, as a Sigmoid far below zero does: how much so is seen from what
    onnxruntime's own optimizations change.

    Args:
        original: The model as it was.
        prepared: What the exact passes made of it.
        feeds: One sample; without it random inputs, with SIDE for sizes that are open or, if the
            model does not run on these, 1, and None if it does not run on those.

    Raises:
        PassError: It is more than rounding explains.
    """
    ran = _random_run(original) if feeds is None else (feeds, original.run(feeds))
    if ran is None:
        return None
    given, before = ran
    worst = _change(before, Session(prepared).run(given))
    half = any(x.dtype == np.float16 for x in before.values())
    if worst <= (TOLERANCE_HALF if half else TOLERANCE):
        return worst
    file = prepared.path
    allowed = _change(before, Session(file, optimize=False).run(given)) if file else 0.0
    if worst > MAGNIFIED * allowed:
        raise PassError(
            f"the exact passes moved a float output by {worst:.1e} of its largest value: this is a "
            "bug, please report it; --no-verify converts all the same"
        )
    return worst


def _random_run(session: Session) -> tuple[Feeds, Feeds] | None:
    """Random inputs that a model runs on, and what it makes of them; None if there are none."""
    for side in (SIDE, 1):
        feeds = random_feeds(session.inputs, side=side)
        with contextlib.suppress(InputError):
            return feeds, session.run(feeds)
    return None


def _change(before: Feeds, after: Feeds) -> float:
    """Largest change of an output, relative to its largest value.

    Raises:
        PassError: It is one of shape, or of which values are finite.
    """
    worst = 0.0
    for name, x in before.items():
        if x.shape != after[name].shape:
            raise PassError(f"the exact passes changed the shape of output {name}")
        if not np.issubdtype(x.dtype, np.floating) or not x.size:
            continue
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(after[name])):
            raise PassError(f"the exact passes changed where output {name} is finite")
        change = np.subtract(x, after[name], where=finite, out=np.zeros(x.shape))
        largest = np.abs(x, where=finite, out=np.zeros(x.shape)).max()
        worst = max(worst, float(np.abs(change).max() / max(largest, 1e-6)))
    return worst
