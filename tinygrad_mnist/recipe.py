"""A recipe: everything that decides what a training run computes. The options of the command line are its fields.

Default, check and help text of an option stand in one place, here: `config.toml`, the command line and the error
messages are made from them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import nn

CONFIG = "config.toml"
"""The name of the recipe's file in the folder of a run."""

MNIST = "mnist"
"""The data option's name for the embedded data set; anything else is a path."""

LARGEST = sys.float_info.max


class Allowed(NamedTuple):
    """Which values an option takes: in words, for the error message, and as a test."""

    words: str
    test: Callable[[Any], bool]


def _number(words: str, test: Callable[[float], bool]) -> Allowed:
    """Numbers; in a float option, whole ones too. `True` is not a number here."""
    return Allowed(
        f"a number {words}",
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= LARGEST and test(v),
    )


def _up_to(limit: float) -> Allowed:
    return _number(f"from 0 to {limit}", lambda v: 0 <= v <= limit)


def _integer(least: int) -> Allowed:
    return Allowed(
        f"a whole number, {least} or more", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least
    )


def _name(*names: str) -> Allowed:
    return Allowed(f"{', '.join(names[:-1])} or {names[-1]}", lambda v: v in names)


def _is_initialiser(value: Any) -> bool:
    try:
        return isinstance(value, str) and nn.initialiser(value) is not None
    except ValueError:
        return False


_from_0 = _number("from 0", lambda v: v >= 0)
_below_1 = _number("from 0 to below 1", lambda v: 0 <= v < 1)
_flag = Allowed("true or false", lambda v: isinstance(v, bool))
_path = Allowed(f"{MNIST!r} or a path", lambda v: isinstance(v, str) and v != "" and "\0" not in v)
_sizes = Allowed(
    "two or more whole numbers from 1, such as 784,128,64,10",
    lambda v: isinstance(v, tuple) and len(v) >= 2 and all(_integer(1).test(n) for n in v),
)
_initialiser = Allowed(f"{', '.join(nn.INITIALISERS)} or normal(s) with a number s", _is_initialiser)


def _option(default: Any, allowed: Allowed, help: str) -> Any:
    return field(default=default, metadata={"allowed": allowed, "help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how. Raises ValueError, in one line, for an option that has no such value."""

    data: str = _option(MNIST, _path, "images to learn from: the embedded set, a folder of IDX files or an .npz")
    validation: float = _option(0.0, _below_1, "share of the training images held out for validation")
    elastic: float = _option(0.0, _up_to(1000), "strength of elastic distortions of training images, Simard's alpha")
    sigma: float = _option(4.0, _number("from 1 to 1000", lambda v: 1 <= v <= 1000), "their smoothness, in pixels")
    rotation: float = _option(0.0, _up_to(180), "largest angle by which training images are turned, in degrees")
    shear: float = _option(0.0, _up_to(10), "largest share by which they are slanted")
    scale: float = _option(0.0, _below_1, "largest share by which each side of them is shortened or lengthened")
    shift: float = _option(0.0, _up_to(1000), "most pixels by which they are moved")
    layers: tuple[int, ...] = _option((784, 128, 64, 10), _sizes, "units of each layer, from the pixels to the classes")
    activation: str = _option("relu", _name(*nn.ACTIVATIONS), "what follows each hidden layer")
    init: str = _option("glorot_uniform", _initialiser, "how weights are drawn")
    dropout: float = _option(0.0, _below_1, "probability of dropping a hidden unit")
    loss: str = _option("cross_entropy", _name("cross_entropy", "mse"), "what is minimised, of the softmax")
    l2: float = _option(0.0, _from_0, "adds l2 / 2 times the sum of all squared weights to the loss")
    optimizer: str = _option("adam", _name("sgd", "adam", "adamw"), "how parameters are updated")
    lr: float = _option(0.01, _number("above 0", lambda v: v > 0), "learning rate, at its highest")
    schedule: str = _option("one_cycle", _name("constant", "cosine", "one_cycle"), "how lr changes over the steps")
    momentum: float = _option(0.0, _below_1, "momentum of sgd")
    nesterov: bool = _option(False, _flag, "use Nesterov's form of momentum")
    weight_decay: float = _option(0.0, _from_0, "weight decay of the optimizer")
    clip: float = _option(0.0, _from_0, "largest norm of the gradient, 0 for no limit")
    batch: int = _option(256, _integer(1), "images in a step")
    epochs: int = _option(6, _integer(1), "passes over the training images")
    dtype: str = _option("float32", _name("float32", "float64"), "type of weights and arithmetic")
    seed: int = _option(0, _integer(0), "decides weights, order, dropout, distortions and the validation split")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            allowed: Allowed = option.metadata["allowed"]
            if isinstance(option.default, tuple) and isinstance(value, list):
                value = tuple(value)
            if not allowed.test(value):
                raise ValueError(f"{option.name} must be {allowed.words}; got {value!r}")
            # Equal recipes are to be written alike: 1 and 1.0 are one learning rate.
            kind: type = type(option.default)
            object.__setattr__(self, option.name, kind(value))
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is an option of optimizer sgd; {self.optimizer} has its own: leave it at 0")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        # Normal numbers of standard deviation 1 stay below 10.
        if self.init.startswith("normal(") and 10 * float(self.init[7:-1]) > float(np.finfo(self.dtype).max):
            raise ValueError(f"init {self.init} draws weights that are too large for {self.dtype}")
        try:
            self.data.encode()
        except UnicodeEncodeError:  # from the command line, such a path has surrogates
            raise ValueError(f"data must be a path in UTF-8, as {CONFIG} is; got {self.data!r}") from None

    @property
    def distorts(self) -> bool:
        """Whether training images are distorted."""
        return any((self.elastic, self.rotation, self.shear, self.scale, self.shift))

    def to_toml(self) -> str:
        """The recipe as the text of a TOML file that `from_toml` reads back."""
        lines = [(option.name, _toml(getattr(self, option.name)), option.metadata["help"]) for option in fields(self)]
        return "".join(f"{name} = {value}  # {help}\n" for name, value, help in lines)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
        """The recipe with these options, and all others as in `base`, by default the defaults; ValueError for an
        unknown one."""
        known = [option.name for option in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"unknown option {name!r}; the options are {', '.join(known)}")
        return replace(base or cls(), **options)

    @classmethod
    def from_toml(cls, text: str, base: Recipe | None = None) -> Recipe:
        """The inverse of `to_toml`; options may be left out, and are then as in `base`."""
        return cls.from_mapping(from_toml(text), base)

    @classmethod
    def read(cls, path: str | os.PathLike[str], base: Recipe | None = None) -> Recipe:
        """The recipe in a TOML file, or in the folder of a run; options may be left out, and are then as in `base`.
        Every error names the file."""
        if os.path.isdir(path):
            path = Path(path) / CONFIG
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8-sig"), base)  # some editors begin with a BOM
        except ValueError as error:  # UnicodeDecodeError too
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def from_toml(text: str) -> dict[str, Any]:
    """What a TOML file says; ValueError where the text is none."""
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not a TOML file: {error}") from error
    except RecursionError:
        raise ValueError("not a TOML file of options: it is nested too deeply") from None


def _toml(value: Any) -> str:
    """A value as TOML writes it: as JSON does, but for one control character that JSON leaves alone."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_best = Recipe(
    elastic=38.0, sigma=5.0, rotation=10.0, shear=0.1, scale=0.12, shift=1.0, layers=(784, 1024, 1024, 10),
    init="he_normal", optimizer="adamw", lr=2e-3, weight_decay=0.1, epochs=75,
)  # fmt: skip
RECIPES = {"best": _best, "record": replace(_best, epochs=300)}
"""Recipes that have a name: how they were chosen stands in benchmarks/RESULTS.md."""


def named(name: str) -> Recipe:
    """The recipe of a name; ValueError for any other."""
    if name not in RECIPES:
        raise ValueError(f"recipe must be {' or '.join(RECIPES)}; got {name!r}")
    return RECIPES[name]
