"""Two models side by side on the same samples: accuracy with labels, fidelity always."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import CalibrationError
from onnxq.graph.parts import Parts, apart
from onnxq.numerics.metrics import Fidelity, kl_divergence, wilson_interval
from onnxq.progress import Progress, silent
from onnxq.runtime import Session, in_order
from onnxq.samples.data import Batch, Images, Samples, batch_size, batches
from onnxq.spec import Array

# Samples behind the figures that are given without being asked for.
EVIDENCE = 64
# Samples on which the optimised and the unoptimised graph are compared.
EXACT_SAMPLES = 16
# Where the 95 % interval of equal answers ends below this, the two graphs are said to disagree: one
# answer of 16 may hang by a tie.
EXACT_AGREEMENT = 0.98
# Likewise, in dB, for models whose answers cannot be counted.
EXACT_SQNR = 20.0
# By so many dB the optimised graph has to be further from the float model, too: some models magnify
# the rounding of a sum to as much as all of quantization does, and neither graph is worse then.
EXACT_LOSS = 1.0


@dataclass
class Rate:
    """A share of samples with its 95 % interval."""

    hits: int = 0
    count: int = 0

    @property
    def percent(self) -> float:
        """The share in percent."""
        return 100.0 * self.hits / self.count if self.count else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval in percent."""
        lo, hi = wilson_interval(self.hits, self.count)
        return 100.0 * lo, 100.0 * hi

    def add(self, hits: Array) -> None:
        """Fold a boolean per sample in."""
        self.hits += int(np.sum(hits))
        self.count += hits.size


@dataclass
class Comparison:
    """What a validation found.

    Attributes:
        samples: Samples run.
        outputs: Output name to fidelity.
        agreement: Same top-1 answer; None if the models are not classifiers.
        kl: Mean KL divergence of the classifier's distributions in nats.
        float_top1: Accuracy of the float model; None without labels. Likewise the other three.
        constant_answer: The float model gave one answer to every sample.
        exact: Agreement of the quantized model's optimised and unoptimised graph.
        exact_sqnr: SQNR in dB between those two, of the output where it is least.
        exact_loss: By how many dB the optimised one is further from the float model, of the output
            where it is most.
        skipped: Files that could not be read and folders left out, with the reason.
        unlabeled: Why the images' class folders are no labels, or nothing.
        classes: Number of classes of a classifier, else 0.
        assumptions: What was taken for granted about the data, a sentence each.
    """

    samples: int = 0
    outputs: dict[str, Fidelity] = field(default_factory=dict)
    agreement: Rate | None = None
    kl: float = 0.0
    float_top1: Rate | None = None
    quantized_top1: Rate | None = None
    float_top5: Rate | None = None
    quantized_top5: Rate | None = None
    constant_answer: bool = False
    exact: Rate | None = None
    exact_sqnr: float = float("inf")
    exact_loss: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    unlabeled: str = ""
    classes: int = 0
    assumptions: list[str] = field(default_factory=list)

    @property
    def drop(self) -> float | None:
        """Points lost: of top-1 with labels, else of agreement; None for other models."""
        # In whole samples, so that 10 of 5,000 are 0.2 points and not a little more.
        if self.float_top1 and self.quantized_top1:
            lost = self.float_top1.hits - self.quantized_top1.hits
            return 100.0 * lost / self.float_top1.count
        if self.agreement is None:
            return None
        return 100.0 * (self.agreement.count - self.agreement.hits) / self.agreement.count

    def missed(self, max_drop: float | None) -> float | None:
        """Points beyond ``max_drop``; None if the gate is passed or not set.

        A model whose answers cannot be counted misses every gate, by infinity.
        """
        if max_drop is None:
            return None
        beyond = math.inf if self.drop is None else self.drop - max_drop
        return beyond if beyond > 0 else None

    @property
    def warnings(self) -> list[str]:
        """What the reader must know before believing the figures."""
        found = list(self.assumptions)
        if self.skipped:
            first = [f"{name} ({reason})" for name, reason in list(self.skipped.items())[:3]]
            found.append(f"{len(self.skipped)} files or folders are left out: {', '.join(first)}")
        if self.unlabeled:
            found.append(f"labels are not used: {self.unlabeled}")
        if self.constant_answer:
            found.append("the float model gives one answer to every sample: check preprocessing")
        top1 = self.float_top1
        classes = self.classes
        if top1 and classes and top1.interval[0] <= 100.0 / classes:
            found.append(
                f"the float model is at chance on these data ({top1.percent:.1f} % of {classes} "
                "classes): check preprocessing and the order of the labels"
            )
        for name, fidelity in self.outputs.items():
            if fidelity.incomparable:
                found.append(f"output {name} has other shapes than the float model's in places")
        worse = self.exact_loss > EXACT_LOSS
        if worse and self.exact is None and self.exact_sqnr < EXACT_SQNR:
            found.append(
                "the optimised and the unoptimised graph differ on this processor "
                f"({self.exact_sqnr:.1f} dB): its 8-bit products may saturate"
            )
        if worse and self.exact and self.exact.interval[1] < 100.0 * EXACT_AGREEMENT:
            found.append(
                "the optimised and the unoptimised graph disagree on this processor "
                f"({self.exact.percent:.1f} % equal answers): its 8-bit products may saturate"
            )
        return found


def compare(
    reference: Session,
    quantized: Session,
    samples: Samples,
    *,
    exact: Session | None = None,
    labels: Sequence[int] | None = None,
    joined: Mapping[str, Parts] | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Run both models over all samples in one streaming pass.

    Args:
        reference: The float model.
        quantized: The quantized model as deployed.
        samples: The data.
        exact: The quantized model without graph optimisations, to check a few samples against.
        labels: Class of each sample, by key.
        joined: Outputs whose parts are compared by themselves, too.
        progress: Called after every batch.

    Raises:
        CalibrationError: The models differ in inputs or outputs, or there are no samples.
    """
    _same_signature(reference, quantized)
    found = Comparison()
    answers: set[int] = set()
    between, deployed, unoptimised = (dict[str, Fidelity]() for _ in range(3))

    def run(batch: Batch) -> tuple[Batch, dict[str, Array], dict[str, Array]]:
        both = reference.run(batch.feeds), quantized.run(batch.feeds)
        before, after = ({k: batch.trim(v) for k, v in out.items()} for out in both)
        return batch, before, after

    size = batch_size(reference, samples)
    for batch, before, after in in_order(run, batches(samples, reference.inputs, size)):
        pieces = apart(after, joined or {})
        for name, x in apart(before, joined or {}).items():
            found.outputs.setdefault(name, Fidelity()).update(x, pieces[name])
        scores = _scores(before, labels is not None)
        alike = scores is not None and before[scores].shape == after[scores].shape
        if scores is not None and alike and len(before[scores]):
            logits, other = _flat(before[scores]), _flat(after[scores])
            answers.update(int(a) for a in logits.argmax(axis=1))
            truth = None if labels is None else np.array([labels[key] for key in batch.keys])
            _judge(found, logits, other, truth)
        if exact is not None and found.samples < EXACT_SAMPLES:
            plain = {k: batch.trim(v) for k, v in exact.run(batch.feeds).items()}
            for k, x in plain.items():
                between.setdefault(k, Fidelity()).update(x, after[k])
                deployed.setdefault(k, Fidelity()).update(before[k], after[k])
                unoptimised.setdefault(k, Fidelity()).update(before[k], x)
            if scores is not None and plain[scores].shape == after[scores].shape:
                found.exact = found.exact or Rate()
                same = _flat(plain[scores]).argmax(axis=1) == _flat(after[scores]).argmax(axis=1)
                found.exact.add(same)
        found.samples += batch.valid
        progress("validating", batch.valid, samples.total)
    if not found.samples:
        raise CalibrationError("no samples to validate on")
    compared = [name for name, f in between.items() if f.compared]
    found.exact_sqnr = min((between[name].sqnr for name in compared), default=math.inf)
    losses = [unoptimised[name].sqnr - deployed[name].sqnr for name in compared]
    found.exact_loss = max((loss for loss in losses if not math.isnan(loss)), default=0.0)
    found.constant_answer = len(answers) == 1 and found.samples >= 32
    found.skipped = dict(samples.skipped)
    if isinstance(samples, Images):
        found.unlabeled = samples.unlabeled
    return found


def _judge(found: Comparison, logits: Array, other: Array, truth: Array | None) -> None:
    """Fold the answers of a classifier in: agreement, divergence and, with labels, accuracy."""
    found.classes = logits.shape[1]
    found.agreement = found.agreement or Rate()
    divergence = found.kl * found.agreement.count + float(kl_divergence(logits, other).sum())
    found.agreement.add(logits.argmax(axis=1) == other.argmax(axis=1))
    found.kl = divergence / found.agreement.count
    if truth is not None:
        _score(found, logits, other, truth)


def _scores(outputs: dict[str, Array], labeled: bool) -> str | None:
    """The output that scores classes: the only one, or with labels the first of that shape."""
    fitting = [name for name, x in outputs.items() if _flat(x).ndim == 2 and _flat(x).shape[1] > 1]
    fitting = [name for name in fitting if np.issubdtype(outputs[name].dtype, np.floating)]
    return fitting[0] if fitting and (labeled or len(outputs) == 1) else None


def _flat(x: Array) -> Array:
    """Scores (n, classes) without the spatial axes of size 1 some classifiers leave behind."""
    return x.reshape(x.shape[:2]) if x.ndim > 2 and set(x.shape[2:]) == {1} else x


def _score(found: Comparison, logits: Array, other: Array, truth: Array) -> None:
    """Fold top-1, and top-5 where there are more than five classes, of both models in."""
    for kind, scores in (("float", logits), ("quantized", other)):
        for k in (1, 5):
            if scores.shape[1] > k:
                rate = getattr(found, f"{kind}_top{k}") or Rate()
                best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
                rate.add((best == truth[:, None]).any(axis=1))
                setattr(found, f"{kind}_top{k}", rate)


def _same_signature(reference: Session, quantized: Session) -> None:
    for what in ("inputs", "outputs"):
        ours = [getattr(i, "name", i) for i in getattr(reference, what)]
        theirs = [getattr(i, "name", i) for i in getattr(quantized, what)]
        if ours != theirs:
            raise CalibrationError(
                f"the two models have different {what}: {', '.join(ours)} and {', '.join(theirs)}"
            )
