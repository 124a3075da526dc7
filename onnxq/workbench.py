"""What conversions of one model to several widths and by several recipes share, done once."""

import hashlib
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq._version import __version__
from onnxq.conversion import doubts
from onnxq.errors import CalibrationError
from onnxq.evidence.evaluate import Comparison, compare
from onnxq.evidence.exactness import largest_change
from onnxq.evidence.validation import assumptions
from onnxq.graph.loading import load
from onnxq.graph.model import Model
from onnxq.graph.protos import file_size
from onnxq.numerics.observe import Histogram, MinMax, Observer
from onnxq.progress import Progress
from onnxq.quantization import prepare, quantize, refuse_quantized
from onnxq.recipe import Recipe
from onnxq.runtime import Feeds, Session, cpu_note, version
from onnxq.samples.calibration import Calibration
from onnxq.samples.data import Data, Images, Samples, batches, first_batch
from onnxq.samples.preprocess import ASSUMED, Preprocess, resolve
from onnxq.samples.sources import open_samples
from onnxq.spec import Array

# Bytes of decoded images kept, for calibration and judging each; what is beyond is read again.
HELD_IMAGES = 2**29
# Bytes of float outputs kept; a model and data with more are refused.
HELD_OUTPUTS = 2**30


class Memo:
    """Results by what they were made of, and a clock that runs on as if each were made anew."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Any, float]] = {}
        self._saved = 0.0

    def seconds(self) -> float:
        """What the clock shows."""
        return time.perf_counter() + self._saved

    def once(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What ``work`` returned the first time; nothing is kept of a failure."""
        if key in self._known:
            self._saved += self._known[key][1]
        else:
            start = time.perf_counter()
            self._known[key] = work(), time.perf_counter() - start
        return self._known[key][0]


@dataclass
class SharedCalibration(Calibration):
    """Calibration that is not repeated for the same model, tensors and folds.

    What is tapped can change what onnxruntime fuses, and so the last bits of what it computes: only
    a pass over the very same tensors is the same.
    """

    memo: Memo = field(default_factory=Memo)

    def collect(self, model: Model, observers: dict[str, Observer]) -> dict[str, Observer]:
        """See Calibration; a Histogram, which is a MinMax, stands in for every MinMax."""
        folds = {k: Histogram() if type(o) is MinMax else o for k, o in observers.items()}

        def work() -> tuple[Any, ...]:
            found = super(SharedCalibration, self).collect(model, folds)
            return found, self.count, self.digest, self.moments

        key = model.digest(), hashlib.sha256(pickle.dumps(folds)).digest()
        found, self.count, self.digest, self.moments = self.memo.once(key, work)
        return dict(found)


class RememberingSession(Session):
    """A model that runs once on the same feeds; its outputs stay in memory."""

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        self._known: dict[str, dict[str, Array]] = {}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See Session."""
        key = _digest(feeds)
        if key not in self._known:
            self._known[key] = super().run(feeds)
        return self._known[key]


def _digest(feeds: Feeds) -> str:
    hasher = hashlib.sha256()
    for name, x in feeds.items():
        hasher.update(f"{name} {x.dtype} {x.shape}".encode())
        hasher.update(np.ascontiguousarray(x).data)
    return hasher.hexdigest()


class Workbench:
    """One float model, its data, and what conversions of it share.

    Args:
        source: See ``comparison.compare_recipes``; likewise the following.
        calib: To calibrate on.
        data: To judge on.
        calib_size: Samples drawn from ``calib``.
        preprocess: For images.
        labels: Of ``data``.
        seed: Of the draw, and of what training draws.
        progress: Called as samples are done.

    Attributes:
        float_bytes: Size of the float model.
        calibrated: Digest of every calibration sample.
        judged: Digest of every sample to judge on.

    Raises:
        InputError: The model or the data cannot be used.
    """

    def __init__(
        self,
        source: Path,
        calib: Data,
        data: Data,
        calib_size: int,
        preprocess: Preprocess | str | Path | None,
        labels: str | Path,
        seed: int,
        progress: Progress,
    ) -> None:
        self.float_bytes = file_size(source)
        self._model, self._session = load(source), RememberingSession(source)
        refuse_quantized(self._model)
        inputs, self._progress, self._memo = self._session.inputs, progress, Memo()
        self._seed = seed
        self._preprocess, self._origin = resolve(preprocess, source, self._model.metadata, inputs)
        assumed = self._origin.startswith(ASSUMED)
        self._calib = open_samples(calib, inputs, self._preprocess, calib_size, seed)
        self._judge = open_samples(data, inputs, self._preprocess, None, seed, labels)
        self._labels = getattr(self._judge, "labels", None)
        for samples in (self._calib, self._judge):
            if isinstance(samples, Images):
                samples.spare = HELD_IMAGES
                samples.assumed = self._origin if assumed else ""
        self._sample = first_batch(self._calib, inputs).feeds
        self.calibrated, self.judged = self._read(self._calib), self._read(self._judge)
        self._refuse_large_outputs()
        self._ingredients = (
            self._model.digest(), self._preprocess.model_dump_json(), assumed,
            self.calibrated, self.judged, self._labels, seed, __version__, version(), cpu_note(),
        )  # fmt: skip

    @property
    def overlap(self) -> int:
        """Samples to judge on that are among the calibration samples."""
        known = set(self.calibrated)
        return sum(digest in known for digest in self.judged)

    def key(self, name: str, recipe: Recipe) -> str:
        """Hash of everything that the figures of a recipe depend on."""
        parts = json.dumps((name, recipe.to_json(), *self._ingredients))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def figures(self, recipe: Recipe) -> dict[str, Any]:
        """Convert, judge, and forget the file: the fields of a ``comparison.Row`` this measures."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{recipe.label}.onnx"
            seconds, warnings = self.convert(recipe, file)
            found, size = self.judge(file), file_size(file)
        noise = [f.sqnr for f in found.outputs.values() if f.compared]
        return {
            "top1": found.quantized_top1.percent if found.quantized_top1 else None,
            "float_top1": found.float_top1.percent if found.float_top1 else None,
            "agreement": found.agreement.percent if found.agreement else None,
            "sqnr": min(noise, default=None),
            "bytes": size,
            "size_ratio": size / self.float_bytes,
            "seconds": seconds,
            "warnings": tuple(dict.fromkeys((*warnings, *found.warnings))),
        }

    def convert(self, recipe: Recipe, file: Path) -> tuple[float, list[str]]:
        """Write the file that ``conversion.convert`` would; the seconds, and doubts about the data.

        What was taken from an earlier conversion counts as if it were done again.
        """
        start = self._memo.seconds()
        key = recipe.opset, recipe.target_ort, recipe.exact
        prepared = self._memo.once(key, lambda: self._prepared(recipe))
        calibration = SharedCalibration(
            self._calib, self._preprocess, self._progress, seed=self._seed, memo=self._memo
        )
        quantize(prepared, recipe, calibration, self._preprocess, self._origin).model.save(file)
        return self._memo.seconds() - start, doubts(calibration, self._origin)

    def judge(self, file: Path) -> Comparison:
        """The float model, run once for all files, and a quantized one on the judging samples."""
        found = compare(
            self._session,
            Session(file),
            self._judge,
            exact=Session(file, optimize=False),
            labels=self._labels,
            progress=self._progress,
        )
        found.assumptions = assumptions(self._judge)
        return found

    def _prepared(self, recipe: Recipe) -> Model:
        """The model after the exact passes, held to what it was."""
        model = self._model.clone()
        prepare(model, recipe)
        largest_change(self._session, model, self._sample)
        return model

    def _read(self, samples: Samples) -> list[str]:
        """Walk all samples, which keeps images in memory, and hash each.

        Raises:
            CalibrationError: One does not fit the model.
        """
        found = []
        for batch in batches(samples, self._session.inputs, 1):
            whole = {name: batch.trim(x) for name, x in batch.feeds.items()}
            for row in range(batch.valid):
                found.append(_digest({k: x[row : row + 1] for k, x in whole.items()}))
            self._progress("reading", batch.valid, samples.total)
        return found

    def _refuse_large_outputs(self) -> None:
        """Tell from one sample's float outputs whether those of all can be kept.

        Raises:
            CalibrationError: They cannot.
        """
        batch = first_batch(self._judge, self._session.inputs)
        one = sum(x.nbytes for x in self._session.run(batch.feeds).values()) / batch.valid
        size, count = one * len(self.judged), len(self.judged)
        if size > HELD_OUTPUTS:
            raise CalibrationError(
                f"the float outputs of {count} samples take {size / 2**20:.0f} MiB, more than the "
                f"{HELD_OUTPUTS / 2**20:.0f} that are kept: give fewer samples to judge on"
            )
