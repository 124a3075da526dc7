"""Weights to integers: a range, a grid, codes."""

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from onnxq.errors import UnsupportedModel
from onnxq.graph.layers import Layer, layers
from onnxq.graph.model import Model
from onnxq.numerics import affine, levels, oaq, pairs, ranges
from onnxq.pipeline import Outcome, Pass, Statistics
from onnxq.spec import Floats, QParams, QTensor, QuantSpec, weight_spec

Levels = Literal["uniform", "pot", "ipot", "apot", "post", "kmeans", "ternary", "binary"]
Range = Literal["max", "percentile", "mse", "aciq", "entropy", "oaq", "oaq-mse", "oaq-ssim"]
# Channels next to nothing, relative to the largest weight: levels without a zero make no zeros.
DEAD = 1e-12
# Levels with an optimum of their own, for which no range is chosen.
OPTIMAL = ("ternary", "binary")


class QuantizeWeights(Pass):
    """Round every layer's weight to the nearest level of a symmetric grid, or of another set.

    Attributes:
        levels: ``uniform`` or a set of numerics/levels.py.
        bits: 2 to 8; sets of levels exist in fewer widths, ``binary`` in 1 bit.
        per_channel: One scale for each output channel rather than one for the layer.
        group_size: One scale for so many input channels of each output channel; float layers alone
            can have that, since an integer kernel sums over all of them. 0 for no groups.
        range: How the range is chosen. ``oaq`` is the outlier-aware one with a tabulated sigma, and
            ``oaq-mse`` and ``oaq-ssim`` search for it, by least error or by similarity of
            histograms. ``mse`` and ``oaq-mse`` are tuned for the levels. Clusters are not clipped:
            a range is what makes channels alike that share them. Ternary and binary weights have
            an optimum of their own.
        outliers: Weights beyond three standard deviations are kept, or ``compress`` and ``scale``
            draw them in by half, for good, before the range is chosen (numerics/oaq.py).
        book: Levels lie on an ``int8`` grid, for integer kernels; neighbours of 8 bits leave each
            other room, so that no processor saturates (numerics/pairs.py). Or they are ``float``.
        wide: Layers whose weights have other bits, and how many; their levels are uniform where
            ``levels`` has no such width.
    """

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False

    levels: Levels = "uniform"
    bits: int = Field(8, validate_default=True)
    per_channel: bool = True
    group_size: int = Field(0, ge=0)
    range: Range = "max"
    outliers: Literal["keep", "compress", "scale"] = "keep"
    book: Literal["int8", "float"] = "int8"
    wide: dict[str, Annotated[int, Field(ge=2, le=8)]] = Field(default_factory=dict)

    @field_validator("bits")
    @classmethod
    def _exists(cls, bits: int, info: ValidationInfo) -> int:
        name = info.data.get("levels", "uniform")
        low, high = levels.WIDTHS[name]
        if not low <= bits <= high:
            widths = str(low) if low == high else f"{low} to {high}"
            raise ValueError(f"{name} weights have {widths} bits, not {bits}")
        return bits

    def run(self, model: Model, statistics: Statistics) -> Outcome:
        """Fill in ``model.weights``."""
        outcome = Outcome()
        if self.levels in levels.SETS and self.book == "int8":
            moved = levels.book_rounding(self.levels, self.bits)
            outcome.remark("model", f"its levels lie on an int8 grid, at most {moved:.2%} away")
        if self.levels == "kmeans":
            what = "the levels of each layer are what its weights cluster to"
            outcome.remark("model", what + (", on an int8 grid" if self.book == "int8" else ""))
        for name in sorted(self.wide.keys() - {layer.name for layer in layers(model)}):
            outcome.skip(name, "the recipe names it, and it is not there")
        for layer in layers(model):
            if (why := model.kept_float.get(layer.name)) is not None:
                outcome.skip(layer.name, why)
                continue
            if layer.weight.size == 0:
                outcome.skip(layer.name, "its weight is empty")
                continue
            _require_finite(layer)
            step = self._of_bits(self.wide.get(layer.name, self.bits))
            weight = step._weight(layer, outcome)
            model.weights[layer.name] = weight
            values = np.abs(affine.values(weight)).reshape(layer.weight.shape)
            largest = values.max(axis=affine.reduce_axes(values.ndim, layer.out_axis))
            dead = int(np.sum(largest <= DEAD * largest.max())) - model.filled.get(layer.name, 0)
            outcome.edit(layer.name, f"{step.bits} bits")
            if dead and layer.weight.size > layer.c_out:  # a factor may well be zero
                outcome.remark(
                    layer.name,
                    f"{dead} of {layer.c_out} channels are dead: all zero",
                )
        return outcome

    def _of_bits(self, bits: int) -> Self:
        low, high = levels.WIDTHS[self.levels]
        name = self.levels if low <= bits <= high else "uniform"
        return self.model_copy(update={"bits": bits, "levels": name})

    def _weight(self, layer: Layer, outcome: Outcome) -> QTensor:
        headroom = self.book == "int8" and layer.adds_pairs and not self.group_size
        spec = weight_spec(self.bits, self.per_channel, headroom)
        # One weight for each channel, as of a batch normalization, has no range to share.
        scalars = layer.c_out > 1 and layer.weight.size == layer.c_out
        axis = layer.out_axis if self.per_channel or scalars else None
        c_in = layer.weight.shape[layer.in_axis]
        if self.group_size and c_in % self.group_size == 0:
            return self._grouped(layer, spec)
        if self.group_size:
            outcome.remark(
                layer.name,
                f"its {c_in} input channels are not whole groups of {self.group_size}: one scale "
                "for each output channel",
            )
        return self._quantized(layer, layer.weight, spec, axis)

    def _grouped(self, layer: Layer, spec: QuantSpec) -> QTensor:
        """The weight with its input channels split in two axes, a scale for each of the first.

        Output channels and groups together are the channels of a matrix that is quantized as any.
        """
        w, group = layer.weight, layer.in_axis
        split = w.reshape(*w.shape[:group], -1, self.group_size, *w.shape[group + 1 :])
        out = layer.out_axis + (layer.out_axis > group)
        rows = np.moveaxis(split, (out, group), (0, 1))
        matrix = rows.reshape(rows.shape[0] * rows.shape[1], -1)
        found = self._quantized(layer, matrix, spec, 0)
        scale = found.params.scale.reshape(*rows.shape[:2], *[1] * (rows.ndim - 2))
        codes = np.moveaxis(found.codes.reshape(rows.shape), (0, 1), (out, group))
        scale = np.moveaxis(scale, (0, 1), (out, group))
        params = QParams(scale, np.zeros(scale.shape, np.int8), None, spec)
        return QTensor(codes, params, found.book)

    def _quantized(self, layer: Layer, w: Floats, spec: QuantSpec, axis: int | None) -> QTensor:
        if self.outliers != "keep":
            w = oaq.OUTLIERS[self.outliers](w, axis)
        if self.levels == "uniform":
            params = affine.qparams(*ranges.WEIGHT[self.range](w, spec, axis), spec, axis)
            if spec.headroom:
                w = affine.clip(w, params)
                sums = pairs.sums(layer.in_order(w))
                params = pairs.spaced(params, sums.max() if axis is None else sums)
            return QTensor(affine.quantize(w, params), params)
        clip = self._clip(w, spec, axis)
        return levels.quantize(w, self.levels, spec, axis, clip, self.book == "int8")

    def _clip(self, w: Floats, spec: QuantSpec, axis: int | None) -> Floats | None:
        """Where levels that are not uniform end; None for where they have the least error.

        Sigma of clusters is sought for those of weights relative to the largest of each channel.
        """
        if self.levels in OPTIMAL or self.range == "mse":
            return None
        if self.range == "oaq-mse":
            if self.levels == "kmeans":
                _, largest = oaq.scaled_range(w, 1.0, axis)
                points, _ = levels.clusters(w, self.bits, axis, largest)
            else:
                points = levels.SETS[self.levels](self.bits)
            lo, hi = oaq.scaled_range(w, oaq.sigma_mse(w, points, axis), axis)
        else:
            lo, hi = ranges.WEIGHT[self.range](w, spec, axis)
        return np.maximum(-lo, hi).astype(np.float64)


def _require_finite(layer: Layer) -> None:
    for what, values in (("weight", layer.weight), ("bias", layer.bias)):
        if values is not None and not (finite := np.isfinite(values)).all():
            raise UnsupportedModel(
                f"the {what} of {layer.name} has {np.sum(~finite)} NaN or infinite values of "
                f"{finite.size}: the model is damaged; export it again"
            )
