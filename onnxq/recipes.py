"""Recipes by name, and those that flags describe."""

import difflib
from typing import TypedDict

from pydantic import ValidationError

from onnxq.errors import UsageError
from onnxq.graph.storage import OLDEST
from onnxq.numerics.levels import WIDTHS
from onnxq.passes.absorb_batchnorm import AbsorbBatchnorm
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.absorb_pads import AbsorbPads
from onnxq.passes.advance_activations import AdvanceActivations
from onnxq.passes.clean_graph import CleanGraph
from onnxq.passes.clip_plateaus import ClipPlateaus
from onnxq.passes.compensate_rounding import CompensateRounding
from onnxq.passes.copy_sizes import CopySizes
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.correct_bias_analytic import CorrectBiasAnalytic
from onnxq.passes.distill import Distill
from onnxq.passes.drop_identities import DropIdentities
from onnxq.passes.drop_traces import DropTraces
from onnxq.passes.equalize import Equalize
from onnxq.passes.equalize_activations import EqualizeActivations
from onnxq.passes.expand_hard_activations import ExpandHardActivations
from onnxq.passes.expand_mish import ExpandMish
from onnxq.passes.expand_prelu import ExpandPrelu
from onnxq.passes.finetune_bias import FinetuneBias
from onnxq.passes.finetune_sigma import FinetuneSigma
from onnxq.passes.fold_batchnorm import FoldBatchnorm
from onnxq.passes.fold_sizes import FoldSizes
from onnxq.passes.fork_residuals import ForkResiduals
from onnxq.passes.fuse_gelu import FuseGelu
from onnxq.passes.hoist_constants import HoistConstants
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.layout_proof import LayoutProof
from onnxq.passes.learn_rounding import LearnRounding
from onnxq.passes.merge_branches import MergeBranches
from onnxq.passes.normalize import Normalize
from onnxq.passes.pad_channels import PadChannels
from onnxq.passes.pool_means import PoolMeans
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_tables import QuantizeTables
from onnxq.passes.quantize_weights import OPTIMAL, QuantizeWeights
from onnxq.passes.reconstruct_blocks import ReconstructBlocks
from onnxq.passes.split_shared import SplitShared
from onnxq.passes.turn_depth_to_space import TurnDepthToSpace
from onnxq.passes.unroll_transposed import UnrollTransposed
from onnxq.pipeline import LearnedPass, Pass
from onnxq.recipe import ActBits, Recipe
from onnxq.samples.preprocess import explain

PREPARATION: tuple[Pass, ...] = (
    HoistConstants(),
    Normalize(),
    FoldSizes(),
    DropIdentities(),
    AbsorbPads(),
    FuseGelu(),
    AbsorbBatchnorm(),
    CleanGraph(),
    MergeBranches(),
    FoldBatchnorm(),
    PoolMeans(),
    CopySizes(),
    SplitShared(),
    DropTraces(),
)
# What makes more of a graph run on integers, or on better grids, and would only slow floats down.
EXPANSION: tuple[Pass, ...] = (
    LayoutProof(),
    PadChannels(),
    UnrollTransposed(),
    ExpandHardActivations(),
    ExpandPrelu(),
    ExpandMish(),
    AdvanceActivations(),
    TurnDepthToSpace(),
)

# Bits of weights where none are asked for.
DEFAULT_BITS = {"uniform": 8, "ternary": 2, "binary": 1}


def build(
    *,
    bits: int | None = None,
    act_bits: ActBits = 8,
    levels: str | None = None,
    clusters: bool = False,
    weight_range: str | None = None,
    act_range: str | None = None,
    exact: tuple[Pass, ...] = (),
    narrow: tuple[Pass, ...] = (),
    equalized: bool = False,
    before: tuple[Pass, ...] = (),
    after: tuple[Pass, ...] = (),
    per_channel: bool = True,
    group_size: int = 0,
    attention: bool = False,
    first_last_bits: int = 8,
    target_ort: str = OLDEST,
    keep_float: tuple[str, ...] = (),
) -> Recipe:
    """The recipe that flags describe, with passes of its own between the usual ones.

    ``exact`` stand behind the preparation, ``before`` and ``after`` around what quantizes, and
    ``narrow`` behind all other exact ones, where activations have fewer than 8 bits. With
    ``equalized``, activations that are rounded are equalized before all that.

    Levels that are not chosen are uniform or, with ``clusters`` and a width that has them, what the
    weights cluster to: a symmetric uniform grid leaves one of its 2^b codes unused.

    Levels that are not uniform have 4 bits, if no other width is asked for or their only one, and
    a range of the least error (clusters that of the largest weight, ternary and binary weights an
    optimum of their own): the largest weight says little about where levels should end.

    Raises:
        UsageError: A width or range that does not exist.
    """
    if levels is None:
        low, high = WIDTHS["kmeans"]
        levels = "kmeans" if clusters and bits in range(low, high + 1) else "uniform"
    try:
        weights = QuantizeWeights.of(
            {
                "levels": levels,
                "bits": DEFAULT_BITS.get(levels, 4) if bits is None else bits,
                "per_channel": per_channel,
                "group_size": group_size,
                "range": weight_range or ("max" if levels == "uniform" else "mse"),
                "book": "float" if act_bits == "float" else "int8",
            }
        )
        emission = InsertQdq.of({"target_ort": target_ort})
        expansion = () if act_bits == "float" else EXPANSION
        before = before if act_bits == "float" else (ClipPlateaus(), *before)
        if act_bits not in ("float", 8):
            expansion += narrow
        if equalized and act_bits != "float":
            widths = {"bits": act_bits, "weights": weights.bits}
            before = (EqualizeActivations.of(widths), *before)
        exact = (*PREPARATION, *exact, *expansion)
        steps: tuple[Pass, ...] = (*exact, *before, weights, QuantizeTables())
        if act_bits != "float":
            # Clipping pays only where levels are few.
            fitting = act_range or ("minmax" if act_bits == 8 else "mse")
            options = {"bits": act_bits, "range": fitting, "first_last_bits": first_last_bits}
            steps += (QuantizeActivations.of(options | {"attention": attention}),)
        return Recipe(passes=(*steps, *after, emission), keep_float=keep_float)
    except ValidationError as cause:
        raise UsageError(explain(cause)) from cause


class Named(TypedDict, total=False):
    """What a named recipe changes about ``build``."""

    clusters: bool
    weight_range: str
    act_range: str
    exact: tuple[Pass, ...]
    narrow: tuple[Pass, ...]
    equalized: bool
    before: tuple[Pass, ...]
    after: tuple[Pass, ...]


# What they do, and what they change.
NAMED: dict[str, tuple[str, Named]] = {
    "vanilla": (
        "round to nearest, weights on max ranges, activations on min-max",
        {"act_range": "minmax"},
    ),
    "mse": (
        "ranges with the least error, for weights and activations",
        {"weight_range": "mse", "act_range": "mse"},
    ),
    "fast": (
        "as mse, with weights of up to 6 bits on the levels that they cluster to",
        {"clusters": True, "weight_range": "mse", "act_range": "mse"},
    ),
    "oaq": (
        "outlier-aware weight ranges, sigma searched for the least error of the weights",
        {"weight_range": "oaq-mse"},
    ),
    "aciq": (
        "ranges that are optimal for a Laplace or Gauss distribution, for weights and activations",
        {"weight_range": "aciq", "act_range": "aciq"},
    ),
    "dfq": (
        "channels equalized across layers and high biases absorbed, then vanilla, means restored",
        {"exact": (Equalize(),), "before": (AbsorbBias(),), "after": (CorrectBias(),)},
    ),
    "data-free": (
        "as fast, and without data: means restored as batch normalizations tell them",
        {"clusters": True, "weight_range": "mse", "after": (CorrectBiasAnalytic(),)},
    ),
    "ibc": ("vanilla, then the mean of every channel restored", {"after": (CorrectBias(),)}),
    "gptq": (
        "ranges with the least error, later weights make up for earlier ones, means restored",
        {
            "weight_range": "mse",
            "after": (CompensateRounding(prefix=False), CorrectBias()),
        },
    ),
    "balanced": (
        "as fast, but weights make up for each other and for the layers before, means restored",
        {
            "clusters": True,
            "weight_range": "mse",
            "act_range": "mse",
            "narrow": (ForkResiduals(),),
            "equalized": True,
            "after": (CompensateRounding(), CorrectBias()),
        },
    ),
    "oaq-ft": (
        "as oaq, then every sigma trained at the network's output",
        {"weight_range": "oaq-mse", "act_range": "mse", "after": (FinetuneSigma(),)},
    ),
    "bft": (
        "vanilla, the mean of every channel restored, then biases trained",
        {"after": (CorrectBias(), FinetuneBias())},
    ),
    "adaround": (
        "ranges with the least error, means restored, then rounding learned layer by layer",
        {"weight_range": "mse", "act_range": "mse", "after": (CorrectBias(), LearnRounding())},
    ),
    "brecq": (
        "as adaround, but block by block, together with biases and activation ranges",
        {"weight_range": "mse", "act_range": "mse", "after": (CorrectBias(), ReconstructBlocks())},
    ),
    "distill": (
        "ranges with the least error, then weights, scales, biases and ranges trained together",
        {"weight_range": "mse", "act_range": "mse", "after": (Distill(),)},
    ),
    "best": (
        "balanced, then weights, scales, biases and ranges trained together",
        {
            "clusters": True,
            "weight_range": "mse",
            "act_range": "mse",
            "narrow": (ForkResiduals(),),
            "equalized": True,
            "after": (CompensateRounding(), CorrectBias(), Distill(weights=2e-3)),
        },
    ),
}
# Those that take seconds: they do not train.
UNTRAINED = tuple(
    name
    for name, (_, changes) in NAMED.items()
    if not any(isinstance(step, LearnedPass) for step in changes.get("after", ()))
)
# Those that ``convert`` offers as qualities, and that of conversions without data.
QUALITIES = ("fast", "balanced", "best")
UNCALIBRATED = "data-free"


def plan(
    recipe: Recipe | str | None = None,
    *,
    quality: str | None = None,
    bits: int | None = None,
    act_bits: ActBits | None = None,
    levels: str | None = None,
    oaq: bool = False,
    per_tensor: bool = False,
    group_size: int = 0,
    attention: bool = False,
    first_last_bits: int = 8,
    target_ort: str = OLDEST,
    keep_float: tuple[str, ...] = (),
    calibrated: bool = False,
) -> Recipe:
    """The recipe that the arguments of ``convert`` describe.

    Args:
        recipe: See ``convert``; likewise the following.
        quality: One of ``QUALITIES``.
        bits: Of the weights.
        act_bits: Of the activations.
        levels: Of the weights; by default what the recipe prefers.
        oaq: Outlier-aware weight ranges.
        per_tensor: One weight scale for a layer.
        group_size: One weight scale for so many input channels.
        attention: Products of two activations on integers.
        first_last_bits: Of what the first and last layers read.
        target_ort: The oldest onnxruntime.
        keep_float: Globs over node names.
        calibrated: Whether there are calibration data.

    Raises:
        UsageError: There is no such recipe, or its activations need data that are not there.
    """
    if isinstance(recipe, Recipe):
        flags = (quality, bits, act_bits, levels, oaq, per_tensor, group_size, attention)
        if flags != (None, None, None, None, False, False, 0, False) or (
            (first_last_bits, target_ort) != (8, OLDEST)
        ):
            raise UsageError(
                "a recipe says all of --quality, --bits, --act-bits, --levels, --oaq, "
                "--per-tensor, --group-size, --attention, --first-last-bits and --target-ort"
            )
        chosen = recipe.model_copy(update={"keep_float": (*recipe.keep_float, *keep_float)})
    else:
        if recipe is not None and quality is not None:
            raise UsageError(f"--quality {quality} and --recipe {recipe} both choose a recipe")
        if quality not in (None, *QUALITIES):
            raise UsageError(f"there is no quality {quality}; there are {', '.join(QUALITIES)}")
        recipe = recipe or quality or ("balanced" if calibrated else UNCALIBRATED)
        if recipe not in NAMED:
            near = difflib.get_close_matches(recipe, NAMED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMED)}"
            raise UsageError(f"there is no recipe {recipe}; {hint}")
        if group_size and per_tensor:
            raise UsageError("--group-size and --per-tensor contradict each other")
        if oaq and levels in OPTIMAL:
            raise UsageError(f"--oaq has no say over {levels} weights: they have an optimum")
        changes = NAMED[recipe][1].copy()
        if oaq:
            changes |= {"weight_range": "oaq-mse"}
        width: ActBits = act_bits if act_bits is not None else (8 if calibrated else "float")
        chosen = build(
            bits=bits,
            act_bits=width,
            levels=levels,
            per_channel=not per_tensor,
            group_size=group_size,
            attention=attention,
            first_last_bits=first_last_bits,
            target_ort=target_ort,
            keep_float=keep_float,
            **changes,
        )
    if chosen.act_bits != "float" and not calibrated:
        raise UsageError(
            f"{chosen.act_bits}-bit activations need calibration data: give --calib, or --act-bits "
            "float to quantize the weights alone"
        )
    return chosen
