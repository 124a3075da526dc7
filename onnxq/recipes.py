"""Recipes: what a conversion does, as a value; by name, from TOML, or made of flags."""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

import onnxq.passes  # noqa: F401  (registers the passes)
from onnxq.errors import InputError, UsageError
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.clean_graph import CleanGraph
from onnxq.passes.compensate_rounding import CompensateRounding
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.correct_bias_analytic import CorrectBiasAnalytic
from onnxq.passes.correct_variance import CorrectVariance
from onnxq.passes.distill import Distill
from onnxq.passes.drop_identities import DropIdentities
from onnxq.passes.drop_traces import DropTraces
from onnxq.passes.equalize import Equalize
from onnxq.passes.expand_hard_activations import ExpandHardActivations
from onnxq.passes.finetune_bias import FinetuneBias
from onnxq.passes.finetune_sigma import FinetuneSigma
from onnxq.passes.fold_batchnorm import FoldBatchnorm
from onnxq.passes.fork_residuals import ForkResiduals
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.learn_rounding import LearnRounding
from onnxq.passes.normalize import Normalize
from onnxq.passes.pool_means import PoolMeans
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.reconstruct_blocks import ReconstructBlocks
from onnxq.passes.search_sigma import SearchSigma
from onnxq.passes.split_shared import SplitShared
from onnxq.passes.unroll_transposed import UnrollTransposed
from onnxq.pipeline import REGISTRY, LearnedPass, Pass
from onnxq.preprocess import explain
from onnxq.storage import OLDEST, OPSET, needed_opset

ActBits = int | Literal["float"]

PREPARATION: tuple[Pass, ...] = (
    Normalize(),
    DropIdentities(),
    FoldBatchnorm(),
    CleanGraph(),
    PoolMeans(),
    SplitShared(),
    DropTraces(),
)
# What makes more of a graph run on integers, and would only slow it down in floats.
EXPANSION: tuple[Pass, ...] = (UnrollTransposed(), ExpandHardActivations())


# Lossy passes stand in this order, behind all exact ones; each works on what those before it left.
ORDER = tuple(
    kind.name
    for kind in (
        AbsorbBias, QuantizeWeights, QuantizeActivations, SearchSigma, CompensateRounding,
        CorrectVariance, CorrectBias, CorrectBiasAnalytic, FinetuneSigma, LearnRounding,
        ReconstructBlocks, Distill, FinetuneBias, InsertQdq,
    )
)  # fmt: skip


class Recipe(BaseModel):
    """An ordered tuple of passes and the nodes to leave alone.

    Attributes:
        passes: Exact passes first, then lossy ones.
        keep_float: Globs over node names that stay float.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: tuple[SerializeAsAny[Pass], ...]
    keep_float: tuple[str, ...] = ()

    @field_validator("passes", mode="before")
    @classmethod
    def _parse(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            raise ValueError("a list is wanted, in TOML [[pass]]")
        return tuple(v if isinstance(v, Pass) else _pass_of(v) for v in values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [p.name for p in self.passes]
        if len(set(names)) < len(names):
            raise ValueError("a pass may stand in a recipe only once")
        weights = self._weights
        if self.lossy and weights is None:
            raise ValueError(f"a recipe that quantizes has the pass {QuantizeWeights.name}")
        if weights is not None and self.act_bits != "float":
            if weights.group_size:
                raise ValueError("group_size needs float activations: --act-bits float")
            if weights.levels != "uniform" and weights.book == "float":
                raise ValueError("a float book needs float activations; integer ones need int8")
        rounding, means = CompensateRounding.name, CorrectBias.name
        if rounding in names and means not in names[names.index(rounding) :]:
            raise ValueError(f"{rounding} leaves the means to {means}, which has to follow")
        if self.lossy and names[-1] != InsertQdq.name:
            raise ValueError(f"a recipe that quantizes ends with {InsertQdq.name}")
        order = [p.name for p in self.passes if p.exact or p.name in ORDER]
        wanted = [p.name for p in self.exact] + [name for name in ORDER if name in names]
        if order != wanted:
            first = next(b for a, b in zip(order, wanted, strict=True) if a != b)
            raise ValueError(f"{first} has to stand further to the front: " + ", ".join(wanted))
        return self

    @property
    def exact(self) -> tuple[Pass, ...]:
        """The passes that leave the float function unchanged."""
        return tuple(p for p in self.passes if p.exact)

    @property
    def lossy(self) -> tuple[Pass, ...]:
        """The passes that quantize."""
        return tuple(p for p in self.passes if not p.exact)

    @property
    def first_integer(self) -> int:
        """Where among the lossy passes quantization begins; those before leave a float model."""
        kinds = [isinstance(p, QuantizeWeights) for p in self.lossy]
        return kinds.index(True) if True in kinds else len(kinds)

    @property
    def _weights(self) -> QuantizeWeights | None:
        return next((p for p in self.passes if isinstance(p, QuantizeWeights)), None)

    @property
    def bits(self) -> int:
        """Bits of the weights."""
        return 32 if self._weights is None else self._weights.bits

    @property
    def act_bits(self) -> ActBits:
        """Bits of the activations."""
        return next((p.bits for p in self.passes if isinstance(p, QuantizeActivations)), "float")

    @property
    def opset(self) -> int:
        """The least opset that the quantized model needs."""
        if self._weights is None:
            return OPSET
        uniform = self._weights.levels == "uniform"
        return needed_opset(self._weights.bits, uniform, self.target_ort)

    @property
    def target_ort(self) -> str:
        """The oldest onnxruntime that must read the quantized model."""
        return next((p.target_ort for p in self.passes if isinstance(p, InsertQdq)), OLDEST)

    @property
    def label(self) -> str:
        """Short form for file names, as in ``w4a8`` or ``w4a8-post``."""
        levels = "uniform" if self._weights is None else self._weights.levels
        suffix = "" if levels == "uniform" else f"-{levels}"
        return f"w{self.bits}a{'f' if self.act_bits == 'float' else self.act_bits}{suffix}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the inverse of ``from_dict``."""
        steps = [{"name": p.name, **p.options()} for p in self.passes]
        return {"keep_float": list(self.keep_float), "pass": steps}

    def to_toml(self) -> str:
        """The recipe as a TOML file."""
        return tomli_w.dumps(self.to_dict())

    def to_json(self) -> str:
        """The recipe as one line, for a model's metadata."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what ``to_dict`` wrote.

        Raises:
            UsageError: An unknown key or pass (with the nearest known one), or a wrong value.
        """
        unknown = [key for key in values if key not in ("pass", "keep_float")]
        if unknown or "pass" not in values:
            raise UsageError(
                f"a recipe has the keys pass and keep_float, not {', '.join(unknown) or 'neither'}"
            )
        try:
            return cls(passes=values["pass"], keep_float=values.get("keep_float", ()))
        except ValidationError as cause:
            raise UsageError(f"recipe: {explain(cause)}") from cause

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            InputError: The file is missing or not TOML.
            UsageError: It is not a recipe.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
            raise InputError(f"{path}: not a readable TOML file ({cause})") from cause
        return cls.from_dict(values)


# Bits of weights where none are asked for.
DEFAULT_BITS = {"uniform": 8, "ternary": 2, "binary": 1}


def build(
    *,
    bits: int | None = None,
    act_bits: ActBits = 8,
    levels: str = "uniform",
    weight_range: str | None = None,
    act_range: str | None = None,
    exact: tuple[Pass, ...] = (),
    narrow: tuple[Pass, ...] = (),
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
    ``narrow`` behind all other exact ones, where activations have fewer than 8 bits.

    Levels that are not uniform have 4 bits, if no other width is asked for or their only one, and
    a range of the least error (clusters that of the largest weight, ternary and binary weights an
    optimum of their own): the largest weight says little about where levels should end.

    Raises:
        UsageError: A width or range that does not exist.
    """
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
        if act_bits not in ("float", 8):
            expansion += narrow
        steps: tuple[Pass, ...] = (*PREPARATION, *exact, *expansion, *before, weights)
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

    weight_range: str
    act_range: str
    exact: tuple[Pass, ...]
    narrow: tuple[Pass, ...]
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
        "as mse, and without data: means restored as batch normalizations tell them",
        {"weight_range": "mse", "after": (CorrectBiasAnalytic(),)},
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
        "weights make up for each other and for the layers before, means restored",
        {"weight_range": "mse", "act_range": "mse", "after": (CompensateRounding(), CorrectBias())},
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
            "weight_range": "mse",
            "act_range": "mse",
            "narrow": (Equalize(), ForkResiduals()),
            "after": (CompensateRounding(), CorrectBias(), Distill()),
        },
    ),
}
# Those that take seconds: they do not train.
UNTRAINED = tuple(
    name
    for name, (_, changes) in NAMED.items()
    if not any(isinstance(step, LearnedPass) for step in changes.get("after", ()))
)
# The recipe of each quality, and that of conversions without data.
QUALITIES = {"fast": "mse", "balanced": "balanced", "best": "best"}
UNCALIBRATED = "data-free"


def plan(
    recipe: Recipe | str | None = None,
    *,
    quality: str | None = None,
    bits: int | None = None,
    act_bits: ActBits | None = None,
    levels: str = "uniform",
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
        levels: Of the weights.
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
        if flags != (None, None, None, "uniform", False, False, 0, False) or (
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
        if quality is not None:
            recipe = QUALITIES[quality]
        recipe = recipe or ("balanced" if calibrated else UNCALIBRATED)
        if recipe not in NAMED:
            near = difflib.get_close_matches(recipe, NAMED, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMED)}"
            raise UsageError(f"there is no recipe {recipe}; {hint}")
        if group_size and per_tensor:
            raise UsageError("--group-size and --per-tensor contradict each other")
        if oaq and levels in ("ternary", "binary", "kmeans"):
            raise UsageError(f"--oaq has no say over {levels} weights: they have an optimum")
        changes = NAMED[recipe][1].copy()
        if oaq:
            changes["weight_range"] = "oaq-mse"
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


def _pass_of(values: Any) -> Pass:
    name = values.get("name") if isinstance(values, dict) else None
    if not isinstance(name, str):
        raise ValueError("every pass is a table with a name")
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(REGISTRY)}"
        raise ValueError(f"there is no pass {name}{hint}")
    kind = REGISTRY[name]
    options = {k: v for k, v in values.items() if k != "name"}
    for key in options:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} has no option {key}{hint}")
    try:
        return kind.of(options)
    except ValidationError as cause:
        raise ValueError(f"{name}: {explain(cause)}") from cause
