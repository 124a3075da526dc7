"""End to end: the float network teaches the quantized one, on batches that are drawn and changed.

    L = mean over points of E|y_q - y|^2 / Var(y)  +  KL(softmax(z) || softmax(z_q))

Points are what the network and its last two blocks return; z are the scores of a classifier.
Features tell more of an image than scores do, which keeps few images from being learned by heart
(Finkelstein et al. 2022, QFT).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's custom)
from torch import Tensor

from onnxq.learned.augmentation import channels_last, drawn, mixed, moved
from onnxq.learned.network import QuantizedNetwork
from onnxq.lowering import Lowered
from onnxq.samples.lessons import Lessons
from onnxq.spec import Array, Ints

# Elements of the inputs that run at once, at most, if that is a sample or more.
ELEMENTS = 1 << 19
# Of so many variants of each image that is held out, the first as it is, the judge takes the mean.
VARIANTS = 8
# A variance that a tensor has at least, relative to its mean square.
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
        self._size = max(1, min(self._batch, ELEMENTS // sample))
        self._measure(points, scores)

    def _measure(self, points: Sequence[str], scores: str | None) -> None:
        """Take variances of the points, and of what layers return as units of their biases."""
        outputs = {i: self.network.layers[i].output.name for i in self.network.units}
        wanted = list(dict.fromkeys([*points, *outputs.values(), *([scores] if scores else [])]))
        sums = {name: np.zeros(3) for name in wanted}
        for rows in self.lessons.portions(self.lessons.taught[: self._batch], self._size):
            with torch.no_grad():
                seen = self.teacher.run(self._feeds(rows)[0], wanted)
            floats = {n: x.double() for n, x in seen.items() if x.is_floating_point()}
            for name, x in floats.items():
                sums[name] += x.numel(), float(x.sum()), float(x.square().sum())
        found = {name: _variance(*total) for name, total in sums.items()}
        self._variances = {name: found[name] for name in points if found[name]}
        for i, name in outputs.items():
            self.network.units[i] = found[name] ** 0.5
        shape = floats[scores].shape if scores in floats else ()
        self._scores = scores if len(shape) == 2 and shape[1] > 1 else None
        compared = [*self._variances, *([self._scores] if self._scores else [])]
        self._wanted = list(dict.fromkeys(compared))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare: no point has values that differ."""
        return not self._wanted

    def loss(self, step: int) -> Iterator[Tensor]:
        """The loss of a step, in parts that are small enough for the memory."""
        rng = np.random.default_rng((self.lessons.seed, step))
        taught = self.lessons.taught
        chosen = self.lessons.portions(rng.choice(taught, self._batch, replace=False), self._size)
        total = sum(map(len, chosen))
        for rows in chosen:
            feeds, own = self._feeds(rows)
            if self._augments:
                feeds = own = self._changed(feeds, rng)
            yield self._losses(feeds, own).sum() / total

    def judge(self) -> Array:
        """The loss of every sample held out, float64 (held,).

        That of an image is the mean over ``VARIANTS`` of it, which are the same every time: the
        loss of one alone lies mostly in how near it happens to be to another class.
        """
        held, found = self.lessons.held, []
        for places in self.lessons.portions(np.arange(len(held)), self._size):
            given, own = self._feeds(held[places])
            seen = [(given, own), *((x, x) for x in self._variants(given, places))]
            with torch.no_grad():
                losses = torch.stack([self._losses(*feeds) for feeds in seen]).mean(0)
            found.append(losses.double().cpu().numpy())
        return np.concatenate(found)[: len(held)]

    def _variants(self, feeds: Tensors, places: Ints) -> Iterator[Tensors]:
        """The other variants of samples that are held out, given their places among these."""
        if self._augments:
            assert self.lessons.images is not None
            x, rng = feeds[self.lessons.images], np.random.default_rng(self.lessons.seed)
            for _ in range(VARIANTS - 1):
                move = drawn(len(self.lessons.held), x.shape[2:], rng)
                yield self._with(feeds, moved(x, move.of(places)))

    @property
    def _augments(self) -> bool:
        return self.own is None and self.lessons.images is not None

    def _losses(self, feeds: Tensors, own: Tensors) -> Tensor:
        """The loss of every sample, (samples,); that of a tensor without rows is one for all."""
        count = len(next(iter(feeds.values())))
        with torch.no_grad():
            truth = self.teacher.run(feeds, self._wanted)
        found = self.network.run(own, self._wanted)

        def error(name: str) -> Tensor:
            errors = F.mse_loss(found[name], truth[name], reduction="none")
            if errors.ndim and len(errors) == count:
                return errors.reshape(count, -1).mean(1)
            return errors.mean().expand(count)

        total = torch.zeros(count, device=self.device)
        if self._variances:
            total = torch.stack([error(n) / v for n, v in self._variances.items()]).mean(0)
        if self._scores is None:
            return total
        z, z_q = (F.log_softmax(x[self._scores], 1) for x in (truth, found))
        return total + F.kl_div(z_q, z, log_target=True, reduction="none").sum(1)

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
        assert self.lessons.images is not None
        x = feeds[self.lessons.images]
        x = moved(x, drawn(len(x), x.shape[2:], rng))
        return self._with(feeds, mixed(x, self.mix, rng) if self.mix else x)

    def _with(self, feeds: Tensors, x: Tensor) -> Tensors:
        """The batch with other images."""
        assert self.lessons.images is not None
        return feeds | {self.lessons.images: channels_last(x)}


def _variance(count: float, total: float, squares: float) -> float:
    """From the sums over a tensor of 1, x and x^2; 0 for zeros and for what is not finite."""
    if not count or not np.isfinite(squares):
        return 0.0
    mean, square = total / count, squares / count
    return max(square - mean**2, LEAST * square)
