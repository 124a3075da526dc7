"""A recipe: what a conversion does, as a value, and as TOML."""

import difflib
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

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
from onnxq.graph.storage import OLDEST, OPSET, needed_opset
from onnxq.passes.absorb_bias import AbsorbBias
from onnxq.passes.compensate_rounding import CompensateRounding
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.correct_bias_analytic import CorrectBiasAnalytic
from onnxq.passes.correct_variance import CorrectVariance
from onnxq.passes.distill import Distill
from onnxq.passes.equalize_activations import EqualizeActivations
from onnxq.passes.finetune_bias import FinetuneBias
from onnxq.passes.finetune_sigma import FinetuneSigma
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.learn_rounding import LearnRounding
from onnxq.passes.quantize_activations import QuantizeActivations
from onnxq.passes.quantize_tables import QuantizeTables
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.reconstruct_blocks import ReconstructBlocks
from onnxq.passes.search_sigma import SearchSigma
from onnxq.pipeline import REGISTRY, LearnedPass, Pass
from onnxq.samples.preprocess import explain

METADATA_KEY = "onnxq.recipe"
ActBits = int | Literal["float"]

# Lossy passes stand in this order, behind all exact ones; each works on what those before it left.
ORDER = tuple(
    kind.name
    for kind in (
        EqualizeActivations, AbsorbBias, QuantizeWeights, QuantizeTables, QuantizeActivations,
        SearchSigma, CompensateRounding, CorrectVariance, CorrectBias, CorrectBiasAnalytic,
        FinetuneSigma, LearnRounding, ReconstructBlocks, Distill, FinetuneBias, InsertQdq,
    )
)  # fmt: skip


class Relief(NamedTuple):
    """What a recipe rounds less than the rest.

    Attributes:
        kind: ``weights`` of a layer, ``activations`` of a tensor, or ``floats`` for a node that
            computes in floats.
        name: The layer's, the tensor's or the node's.
        bits: That it has instead; 32 for floats.
    """

    kind: Literal["weights", "activations", "floats"]
    name: str
    bits: int


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
            if weights.book == "float":
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
    def compensated(self) -> bool:
        """Whether weights make up for the rounding of others."""
        return any(isinstance(step, CompensateRounding) for step in self.passes)

    @property
    def opset(self) -> int:
        """The least opset that the quantized model needs."""
        if self._weights is None:
            return OPSET
        return needed_opset(self._weights.bits, self.target_ort)

    @property
    def target_ort(self) -> str:
        """The oldest onnxruntime that must read the quantized model."""
        return next((p.target_ort for p in self.passes if isinstance(p, InsertQdq)), OLDEST)

    @property
    def reliefs(self) -> tuple[Relief, ...]:
        """Where it rounds less."""
        found: list[Relief] = []
        for step in self.passes:
            if isinstance(step, QuantizeWeights):
                found += [Relief("weights", *item) for item in step.wide.items()]
            if isinstance(step, QuantizeActivations):
                found += [Relief("activations", *item) for item in step.wide.items()]
                found += [Relief("floats", name, 32) for name in step.floats]
        return tuple(found)

    def relieved(self, reliefs: Collection[Relief]) -> Self:
        """The same recipe, which rounds less in these places and no others; the most bits count."""

        def named(kind: str) -> dict[str, int]:
            return {name: bits for of, name, bits in sorted(reliefs) if of == kind}

        def with_options(step: Pass) -> Pass:
            if isinstance(step, QuantizeWeights):
                return step.model_copy(update={"wide": named("weights")})
            if isinstance(step, QuantizeActivations):
                options = {"wide": named("activations"), "floats": tuple(named("floats"))}
                return step.model_copy(update=options)
            return step

        return self.model_copy(update={"passes": tuple(map(with_options, self.passes))})

    @property
    def untrained(self) -> Self:
        """The same recipe without the passes that train."""
        kept = tuple(step for step in self.passes if not isinstance(step, LearnedPass))
        return self.model_copy(update={"passes": kept})

    @property
    def plain(self) -> Self:
        """The same recipe, which rounds to nearest and leaves it at that."""
        steps, begin = self.lossy, self.first_integer
        kinds = (QuantizeWeights, QuantizeTables, QuantizeActivations, InsertQdq)
        rounding = tuple(step for step in steps[begin:] if isinstance(step, kinds))
        return self.model_copy(update={"passes": (*self.exact, *steps[:begin], *rounding)})

    @property
    def label(self) -> str:
        """Short form for file names, as in ``w4a8``, with ``-post`` behind it of such levels."""
        levels = "uniform" if self._weights is None else self._weights.levels
        suffix = "" if levels in ("uniform", "kmeans") else f"-{levels}"
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
    def told(cls, metadata: dict[str, str]) -> Self | None:
        """The recipe that a quantized model's metadata carry; None if this version reads none."""
        try:
            return cls.from_dict(json.loads(metadata[METADATA_KEY]))
        except (KeyError, TypeError, ValueError, UsageError):
            return None

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
