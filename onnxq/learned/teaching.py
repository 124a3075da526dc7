"""End to end: the float network teaches the quantized one, on batches that are drawn and changed.

    L = mean over points of E|y_q - y|^2 / Var(y)  +  KL(softmax(z) || softmax(z_q))

Points are what blocks of the network and the network itself return; z are the scores of a
classifier. Features tell more of an image than scores do, which keeps few images from being
learned by heart (Finkelstein et al. 2022, QFT).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.learned.network import QuantizedNetwork
from onnxq.lessons import Lessons
from onnxq.lowering import Lowered
from onnxq.spec import Array, Ints

# Elements of the inputs that run at once, at most, if that is a sample or more.
ELEMENTS = 1 << 19
# An image is shifted by this share of its side, at most.
SHIFT = 1 / 8
# A variance that a tensor has at least.
LEAST = 1e-12

Tensors = dict[str, Tensor]


class Teaching:
    """A float network, a quantized one, and samples.

    Args:
        teacher: The float network.
        network: The quantized one.
        points: Names of the tensors to compare; those that are not of floats are left out.
        scores: Name of the tensor that may be a classifier's scores, (n, classes).
        lessons: Samples, and what the float network reads.
        own: What the quantized network reads, where that is something else.
        batch: Samples of a step.
        mix: Images of a batch are mixed with others of it, up to this share.
    """

    def __init__(
        self,
        teacher: Lowered,
        network: QuantizedNetwork,
        points: Sequence[str],
        scores: str | None,
        lessons: Lessons,
        own: Mapping[str, Array] | None,
        batch: int,
        mix: float,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.teacher, self.network = teacher.to(self.device), network.to(self.device)
        self.lessons, self.own, self.mix = lessons, own, mix
        self._batch = min(batch, len(lessons.taught))
        sample = sum(x[0].size for x in lessons.feeds.values())
        self._part = lessons.fixed or max(1, min(self._batch, ELEMENTS // sample))
        self._measure(points, scores)

    def _measure(self, points: Sequence[str], scores: str | None) -> None:
        """Take variances of the points, and of what layers return as units of their biases."""
        layers = self.network.layers
        outputs = [layer.output.name for layer in layers]
        wanted = list(dict.fromkeys([*points, *outputs, *([scores] if scores else [])]))
        with torch.no_grad():
            seen = self.teacher.run(self._feeds(self.lessons.taught[: self._part])[0], wanted)
        self._variances = {
            name: seen[name].var().clamp_min(LEAST)
            for name in points
            if seen[name].is_floating_point() and seen[name].numel() > 1
        }
        for i in self.network.units:
            self.network.units[i] = float(seen[outputs[i]].std())
        classifies = scores is not None and seen[scores].ndim == 2 and seen[scores].shape[1] > 1
        self._scores = scores if classifies else None
        self._wanted = list(dict.fromkeys([*self._variances, *([scores] if classifies else [])]))

    def loss(self, step: int) -> Iterator[Tensor]:
        """The loss of a step, in parts that are small enough for the memory."""
        rng = np.random.default_rng((self.lessons.seed, step))
        taught = self.lessons.taught
        drawn = rng.choice(taught, max(self._batch, self._part), len(taught) < self._part)
        for rows in self._parts(drawn):
            feeds, own = self._feeds(rows)
            if self.own is None:
                feeds = own = self._changed(feeds, rng)
            yield self._loss(feeds, own) * (len(rows) / len(drawn))

    def judge(self) -> float:
        """The loss on the samples held out, as they are."""
        held = self.lessons.held
        with torch.no_grad():
            sums = [float(self._loss(*self._feeds(rows))) * len(rows) for rows in self._parts(held)]
        return sum(sums) / len(held)

    def _parts(self, rows: Ints) -> list[Ints]:
        """Rows that run together; a fixed number of them, of which the last are filled up."""
        found = np.split(rows, range(self._part, len(rows), self._part))
        return [np.resize(part, self.lessons.fixed or len(part)) for part in found]

    def _loss(self, feeds: Tensors, own: Tensors) -> Tensor:
        with torch.no_grad():
            truth = self.teacher.run(feeds, self._wanted)
        found = self.network.run(own, self._wanted)
        errors = [F.mse_loss(found[n], truth[n]) / v for n, v in self._variances.items()]
        total = torch.stack(errors).mean()
        if self._scores is None:
            return total
        z, z_q = (F.log_softmax(x[self._scores], 1) for x in (truth, found))
        return total + F.kl_div(z_q, z, log_target=True, reduction="batchmean")

    def _feeds(self, rows: Ints) -> tuple[Tensors, Tensors]:
        """What the float network reads, and the quantized one."""
        feeds = {name: self._tensor(x[rows]) for name, x in self.lessons.feeds.items()}
        if self.own is None:
            return feeds, feeds
        return feeds, {name: self._tensor(x[rows]) for name, x in self.own.items()}

    def _tensor(self, x: Array) -> Tensor:
        return channels_last(torch.from_numpy(np.ascontiguousarray(x)).to(self.device))

    def _changed(self, feeds: Tensors, rng: np.random.Generator) -> Tensors:
        """The batch with its images flipped, shifted and mixed."""
        if self.lessons.images is None:
            return feeds
        x = feeds[self.lessons.images]
        flipped = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < 0.5).to(self.device)
        x = torch.where(flipped, x.flip(3), x)
        height, width = x.shape[2:]
        up, left = round(SHIFT * height), round(SHIFT * width)
        top, start = int(rng.integers(2 * up + 1)), int(rng.integers(2 * left + 1))
        padded = F.pad(x, [left, left, up, up], mode="replicate")
        x = padded[:, :, top : top + height, start : start + width]
        if self.mix:
            share = torch.from_numpy(self.mix * rng.random((len(x), 1, 1, 1), np.float32))
            other = torch.from_numpy(rng.permutation(len(x)))
            x = x + share.to(self.device) * (x[other.to(self.device)] - x)
        return feeds | {self.lessons.images: channels_last(x)}


def channels_last(x: Tensor) -> Tensor:
    """An image as convolutions run fastest on it."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
