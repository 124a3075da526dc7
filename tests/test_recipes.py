import json
import tomllib

import pytest
import tomli_w

from onnxq import UsageError
from onnxq.errors import InputError
from onnxq.numerics.levels import WIDTHS
from onnxq.pipeline import REGISTRY
from onnxq.recipe import ORDER, Recipe
from onnxq.recipes import NAMED, build, plan


def rank(name):
    return ORDER.index(name) if name in ORDER else -1


RECIPES = {
    "default": build(),
    "narrow": build(bits=2, act_bits=3, act_range="percentile"),
    "weights only": build(bits=4, act_bits="float", per_channel=False),
    "with nodes left alone": build(keep_float=("head*", "*/stem")),
    **{name: build(**changes) for name, (_, changes) in NAMED.items()},
    "every pass": Recipe(
        passes=sorted((kind() for kind in REGISTRY.values()), key=lambda p: rank(p.name))
    ),
}


def recipe(name):
    return RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_toml_and_json(name, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(recipe(name).to_toml(), encoding="utf-8")
    assert Recipe.from_toml(file) == recipe(name)
    assert Recipe.from_dict(json.loads(recipe(name).to_json())) == recipe(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_file_spells_out_every_option(name):
    for step in tomllib.loads(recipe(name).to_toml())["pass"]:
        assert set(step) == {"name", *REGISTRY[step["name"]].model_fields}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_exact_passes_and_then_its_lossy_ones(name):
    chosen = recipe(name)
    assert sorted(p.name for p in (*chosen.exact, *chosen.lossy)) == sorted(
        p.name for p in chosen.passes
    )
    assert all(p.exact for p in chosen.exact)
    assert not any(p.exact for p in chosen.lossy)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "every pass"])
def test_flags_and_names_build_exact_passes_first(name):
    chosen = recipe(name)
    assert chosen.passes == (*chosen.exact, *chosen.lossy)
    assert chosen.passes[-1].name == "insert-qdq"


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ({}, "w8a8"),
        ({"bits": 4}, "w4a8"),
        ({"bits": 2, "act_bits": 5}, "w2a5"),
        ({"bits": 4, "act_bits": "float"}, "w4af"),
    ],
)
def test_the_label_names_the_widths(flags, label):
    assert build(**flags).label == label


def option(chosen, name, key):
    return next(p.options() for p in chosen.passes if p.name == name)[key]


def test_flags_reach_the_passes():
    chosen = plan(bits=3, act_bits=5, oaq=True, per_tensor=True, calibrated=True)
    assert option(chosen, "quantize-weights", "bits") == 3
    assert option(chosen, "quantize-weights", "per_channel") is False
    assert option(chosen, "quantize-weights", "range") == "oaq-mse"
    assert option(chosen, "quantize-activations", "bits") == 5


@pytest.mark.parametrize("name", NAMED)
def test_a_named_recipe_takes_the_widths_of_the_flags(name):
    chosen = plan(name, bits=4, act_bits=6, calibrated=True)
    assert chosen.label == "w4a6"


def test_a_recipe_says_what_flags_would():
    assert plan(build(bits=4, act_bits="float"), calibrated=True).label == "w4af"
    for flag in ({"bits": 8}, {"levels": "post"}, {"target_ort": "1.20"}, {"quality": "fast"}):
        with pytest.raises(UsageError, match="a recipe says all of --quality, --bits"):
            plan(build(), calibrated=True, **flag)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"calibrated": True}, "balanced"),
        ({"calibrated": True, "quality": "balanced"}, "balanced"),
        ({"calibrated": True, "quality": "fast"}, "fast"),
        ({"calibrated": False}, "data-free"),
    ],
)
def test_a_quality_is_a_recipe_by_another_name(flags, name):
    calibrated = flags["calibrated"]
    assert plan(**flags) == plan(name, calibrated=calibrated)


def test_outlier_aware_ranges_are_the_range_stage_of_any_quality():
    chosen, plain = plan(oaq=True, calibrated=True), plan(calibrated=True)
    assert option(chosen, "quantize-weights", "range") == "oaq-mse"
    others = [[p for p in r.passes if p.name != "quantize-weights"] for r in (chosen, plain)]
    assert others[0] == others[1]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("bits", [None, 2, 4, 6, 7, 8])
def test_recipes_that_are_not_of_the_literature_cluster_weights_of_few_bits(name, bits):
    own = name in ("fast", "data-free", "balanced", "best") and bits in (2, 4, 6)
    chosen = plan(name, bits=bits, calibrated=True)
    assert option(chosen, "quantize-weights", "levels") == ("kmeans" if own else "uniform")
    aware = plan(name, bits=bits, calibrated=True, oaq=True)
    assert option(aware, "quantize-weights", "levels") == option(
        chosen, "quantize-weights", "levels"
    )
    chosen = plan(name, bits=bits, calibrated=True, levels="uniform")
    assert option(chosen, "quantize-weights", "levels") == "uniform"


def test_levels_have_their_own_width_and_range():
    found = {name: plan(levels=name, calibrated=True).label for name in WIDTHS}
    assert found.pop("uniform") == "w8a8"
    assert found.pop("ternary") == "w2a8-ternary"
    assert found.pop("binary") == "w1a8-binary"
    assert found.pop("kmeans") == "w4a8"
    assert found == {name: f"w4a8-{name}" for name in ("pot", "ipot", "apot", "post")}
    weights = next(p for p in plan(levels="post").passes if p.name == "quantize-weights")
    assert (weights.range, weights.book) == ("mse", "float")
    with pytest.raises(UsageError, match="bits: apot weights have 2 to 5 bits, not 8"):
        plan(levels="apot", bits=8, calibrated=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"levels": "ternary", "oaq": True}, "no say over ternary weights"),
        ({"recipe": "ibc", "quality": "fast"}, "--quality fast and --recipe ibc both choose"),
        ({"quality": "mse"}, "no quality mse; there are fast, balanced, best"),
        ({"levels": "binary", "oaq": True}, "no say over binary weights"),
        ({"group_size": 4, "per_tensor": True, "act_bits": "float"}, "contradict each other"),
        ({"group_size": 4}, "group_size needs float activations"),
    ],
)
def test_flags_that_would_have_no_effect_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        plan(calibrated=True, **flags)


ACTIVATIONS, EMISSION = {"name": "quantize-activations"}, {"name": "insert-qdq"}


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([ACTIVATIONS, EMISSION], "has the pass quantize-weights"),
        (
            [{"name": "quantize-weights", "levels": "post", "bits": 4, "book": "float"},
             ACTIVATIONS, EMISSION],
            "a float book needs float activations",
        ),
        (
            [{"name": "quantize-weights", "book": "float"}, ACTIVATIONS, EMISSION],
            "a float book needs float activations",
        ),
    ],
)  # fmt: skip
def test_passes_that_do_not_go_together_are_refused(passes, message):
    with pytest.raises(UsageError, match=message):
        Recipe.from_dict({"pass": passes})


def test_activations_are_quantized_where_there_are_data():
    assert plan(calibrated=True).act_bits == 8
    assert plan(calibrated=False).act_bits == "float"
    with pytest.raises(UsageError, match="need calibration data"):
        plan(act_bits=8, calibrated=False)
    with pytest.raises(UsageError, match="need calibration data"):
        plan(build(), calibrated=False)


def test_nodes_left_alone_add_up():
    chosen = plan(build(keep_float=("a",)), keep_float=("b",), calibrated=True)
    assert chosen.keep_float == ("a", "b")


def test_a_name_that_is_no_recipe_gets_the_nearest_one():
    with pytest.raises(UsageError, match="did you mean vanilla"):
        plan("vanila", calibrated=True)
    with pytest.raises(UsageError, match="there are vanilla"):
        plan("xyz", calibrated=True)


@pytest.mark.parametrize("width", [{"bits": 1}, {"bits": 9}, {"act_bits": 9}, {"act_bits": 0}])
def test_a_width_that_does_not_exist_is_refused(width):
    with pytest.raises(UsageError, match=r"bits: .*(8|2)"):
        plan(**width, calibrated=True)


BAD = {
    "misspelt pass": ({"pass": [{"name": "fold-batch-norm"}]}, "did you mean fold-batchnorm"),
    "unheard-of pass": ({"pass": [{"name": "zzz"}]}, "there is no pass zzz; there are"),
    "misspelt option": (
        {"pass": [{"name": "quantize-weights", "bit": 4}]},
        "has no option bit; did you mean bits",
    ),
    "option of another kind": (
        {"pass": [{"name": "quantize-weights", "bits": "four"}]},
        "quantize-weights: bits: .*integer",
    ),
    "option out of range": (
        {"pass": [{"name": "quantize-weights", "bits": 9}]},
        "quantize-weights: bits: uniform weights have 2 to 8 bits, not 9",
    ),
    "pass without a name": ({"pass": [{"bits": 9}]}, "table with a name"),
    "name that is no word": ({"pass": [{"name": ["x"]}]}, "table with a name"),
    "pass that is no table": ({"pass": [3]}, "table with a name"),
    "passes that are no list": ({"pass": 3}, "a list is wanted"),
    "misspelt key": ({"passes": []}, "has the keys pass and keep_float, not passes"),
    "no passes": ({}, "has the keys pass and keep_float"),
    "globs that are no list": ({"pass": [], "keep_float": 3}, "keep_float: .*tuple"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_recipe_is_refused_in_one_line(kind, tmp_path):
    values, complaint = BAD[kind]
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match=complaint) as error:
        Recipe.from_toml(file)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"pass = [", b"\xff\xfe", None], ids=["torn", "bytes", "none"])
def test_a_file_that_is_no_toml_is_refused(content, tmp_path):
    file = tmp_path / "recipe.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="not a readable TOML file"):
        Recipe.from_toml(file)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("normalize", "normalize"), "only once"),
        (("quantize-weights",), "ends with insert-qdq"),
        (("insert-qdq", "quantize-weights"), "ends with insert-qdq"),
        (("quantize-weights", "absorb-bias", "insert-qdq"), "absorb-bias has to stand further"),
        (("quantize-weights", "normalize", "insert-qdq"), "normalize has to stand further"),
        (
            ("quantize-weights", "correct-bias", "correct-variance", "insert-qdq"),
            "correct-variance",
        ),
    ],
)
def test_a_recipe_that_would_write_something_else_is_refused(
    names: tuple[str, ...], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        Recipe.from_dict({"pass": [{"name": name} for name in names]})
