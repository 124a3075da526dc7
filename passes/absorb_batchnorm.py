"""Batch normalizations in plain sight, before an optimizer may move or merge them."""

from typing import ClassVar

from onnxq.passes.fold_batchnorm import FoldBatchnorm


class AbsorbBatchnorm(FoldBatchnorm):
    """Fold affine maps of channels where a layer beside them absorbs them, and leave the others.

    What ``clean-graph`` merges loses the name of its layer and what the statistics tell. What it
    brings out is left to ``fold-batchnorm``.
    """

    name: ClassVar[str] = "absorb-batchnorm"
    last: ClassVar[bool] = False
