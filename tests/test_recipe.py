"""The options of a run: what they accept, what they say otherwise, and their way to TOML and back."""

import re
import tomllib
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_mnist.recipe import RECIPES, Recipe, named

SHARE = st.floats(0, 1, exclude_max=True)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
FROM_0 = st.floats(0, allow_infinity=False)
ANY = st.builds(
    Recipe,
    data=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    validation=SHARE,
    elastic=st.floats(0, 1000),
    sigma=st.floats(1, 1000),
    rotation=st.floats(0, 180),
    shear=st.floats(0, 10),
    scale=SHARE,
    shift=st.floats(0, 1000),
    layers=st.lists(st.integers(1, 2000), min_size=2, max_size=5).map(tuple),
    activation=st.sampled_from(["relu", "tanh", "gelu"]),
    init=st.sampled_from(["he_normal", "normal(0.01)"]),
    dropout=SHARE,
    loss=st.sampled_from(["cross_entropy", "mse"]),
    l2=FROM_0,
    lr=POSITIVE,
    schedule=st.sampled_from(["constant", "cosine", "one_cycle"]),
    optimizer=st.just("sgd"),
    momentum=st.floats(0.01, 0.99),
    nesterov=st.booleans(),
    weight_decay=FROM_0,
    clip=FROM_0,
    batch=st.integers(1, 10**6),
    epochs=st.integers(1, 10**6),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**63 - 1),
)


@given(ANY)
def test_toml_brings_every_recipe_back(recipe):
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_toml_names_every_option_once_and_explains_it():
    text = Recipe().to_toml()
    assert list(tomllib.loads(text)) == [option.name for option in fields(Recipe)]
    assert all("  # " in line for line in text.splitlines())


def test_options_that_are_left_out_have_their_defaults():
    assert Recipe.from_toml("epochs = 3\nlayers = [784, 10]\nlr = 1") == Recipe(epochs=3, layers=(784, 10), lr=1.0)


def test_equal_numbers_of_different_type_are_one_recipe():
    assert Recipe(lr=1).to_toml() == Recipe(lr=1.0).to_toml()


def test_a_file_is_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(Recipe(seed=5).to_toml(), encoding="utf-8")
    assert Recipe.read(path) == Recipe(seed=5)


def test_a_file_overrides_the_recipe_that_it_is_read_on_top_of(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("epochs = 3\nlayers = [784, 10]", encoding="utf-8")
    best = named("best")
    assert Recipe.read(path, best) == replace(best, epochs=3, layers=(784, 10))


def test_recipes_have_names():
    assert RECIPES.keys() == {"best", "record"}
    assert all(recipe.distorts for recipe in RECIPES.values())
    assert not Recipe(sigma=3.0).distorts
    with pytest.raises(ValueError, match="^recipe must be best or record; got 'bset'$"):
        named("bset")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(Recipe(seed=5).to_toml(), encoding="utf-8-sig")
    assert Recipe.read(path) == Recipe(seed=5)


def test_the_folder_of_a_run_stands_for_its_config(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 5")
    assert Recipe.read(tmp_path) == Recipe(seed=5)
    with pytest.raises(FileNotFoundError, match="config.toml"):
        Recipe.read(tmp_path.parent)


def test_the_largest_normal_weights_that_fit():
    assert Recipe(init="normal(1e300)", dtype="float64").init == "normal(1e300)"


SIZES = "two or more whole numbers from 1, such as 784,128,64,10"


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("data", "", "'mnist' or a path"),
        ("data", 3, "'mnist' or a path"),
        ("data", "a\0b", "'mnist' or a path"),
        ("validation", 1.0, "a number from 0 to below 1"),
        ("validation", -0.1, "a number from 0 to below 1"),
        ("elastic", -1, "a number from 0 to 1000"),
        ("sigma", 0.5, "a number from 1 to 1000"),
        ("rotation", 181, "a number from 0 to 180"),
        ("shear", 11, "a number from 0 to 10"),
        ("scale", 1, "a number from 0 to below 1"),
        ("shift", float("nan"), "a number from 0 to 1000"),
        ("layers", (784,), SIZES),
        ("layers", (784, 0, 10), SIZES),
        ("layers", (784, 1.5), SIZES),
        ("layers", "784,x", SIZES),
        ("activation", "rulu", "relu, sigmoid, tanh, leaky_relu, softplus, gelu, silu or linear"),
        ("init", "normal(x)", "glorot_uniform, glorot_normal, he_uniform, he_normal, normal, zeros, xavier_uniform, "
         "xavier_normal or normal(s) with a number s"),
        ("init", 1, "glorot_uniform, glorot_normal, he_uniform, he_normal, normal, zeros, xavier_uniform, "
         "xavier_normal or normal(s) with a number s"),
        ("dropout", 1, "a number from 0 to below 1"),
        ("loss", "hinge", "cross_entropy or mse"),
        ("l2", -1, "a number from 0"),
        ("optimizer", ["adam"], "sgd, adam or adamw"),
        ("lr", 0, "a number above 0"),
        ("lr", "fast", "a number above 0"),
        ("lr", True, "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("lr", float("inf"), "a number above 0"),
        ("lr", 10**400, "a number above 0"),
        ("schedule", "linear", "constant, cosine or one_cycle"),
        ("momentum", 1.0, "a number from 0 to below 1"),
        ("nesterov", 1, "true or false"),
        ("weight_decay", -0.1, "a number from 0"),
        ("clip", -1.0, "a number from 0"),
        ("batch", 0, "a whole number, 1 or more"),
        ("batch", 12.5, "a whole number, 1 or more"),
        ("epochs", True, "a whole number, 1 or more"),
        ("dtype", "float16", "float32 or float64"),
        ("seed", -1, "a whole number, 0 or more"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(option, value, allowed):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{option} must be {allowed}; got {value!r}')}$"):
        Recipe(**{option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.9}, "momentum is an option of optimizer sgd; adam has its own: leave it at 0"),
        ({"nesterov": True, "optimizer": "sgd"}, "nesterov needs momentum above 0"),
        ({"init": "normal(1e300)"}, r"init normal\(1e300\) draws weights that are too large for float32"),
        ({"init": "normal(1e999)", "dtype": "float64"}, r"normal\(1e999\) draws .* too large for float64"),
        ({"data": "caf\udce9"}, r"^data must be a path in UTF-8, as config.toml is; got 'caf\\udce9'$"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"learning_rate = 0.1", "unknown option 'learning_rate'; the options are data, validation, elastic, "),
        (b"lr = 'fast'", "lr must be a number above 0; got 'fast'"),
        (b"lr == 1", "not a TOML file: "),
        (b"a\0 = 1", "not a TOML file: "),
        (b"a = " + b"[" * 10**4, "not a TOML file of options: it is nested too deeply"),
        (b"lr = \xff", "'utf-8' codec can't decode"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {message}')}.*$"):
        Recipe.read(path)
