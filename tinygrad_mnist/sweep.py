"""A sweep: one recipe trained with many settings of its options, each with some seeds. It lies in one folder:

    sweep.toml                         the config that it was started with
    03-lr=0.01-batch=64-seed=1/ ...    the folder of each run
    results.csv                        a row for each run that is done
    sweep.png                          the accuracy of each setting

The config names a grid, of which every combination is a setting, or what to draw settings from:

    seeds = [0, 1, 2]           # by default [0]
    recipe = "best"             # a named recipe to start from; by default the defaults
    [options]                   # what is the same in all runs
    epochs = 3
    [grid]
    lr = [0.003, 0.01]
    layers = [[784, 64, 10], [784, 128, 64, 10]]

    samples = 20                # instead of [grid], and above the tables
    draw_seed = 0               # decides what is drawn
    [random]
    lr = { low = 1e-4, high = 1e-1, log = true }    # uniform, or uniform in the logarithm
    activation = ["relu", "tanh"]                   # one of these
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays, gpu, plots, serialize
from .data import Dataset
from .recipe import MNIST, Recipe, from_toml, named
from .runs import REPORT, Run
from .train import check_data, load_data, train

CONFIG, RESULTS, PLOT = "sweep.toml", "results.csv", "sweep.png"
FAILURE = "failure.txt"
"""In the folder of a run that diverged: why. It would do so again."""

KEYS = {"grid": ("seeds", "recipe", "options"), "random": ("seeds", "recipe", "options", "samples", "draw_seed")}
"""What goes with each of the two ways to choose settings."""

LONGEST = 100
"""Characters of what a folder's name says of its setting."""

Setting = dict[str, Any]
"""The options that the sweep varies, by name."""


# ---- what to run --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Settings of options, to be trained with each of the seeds; all other options are those of `base`."""

    base: Recipe
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """The sweep of a config file. Every error names the file."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8-sig"))  # some editors begin with a BOM
        except ValueError as error:  # UnicodeDecodeError too
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_toml(cls, text: str) -> Sweep:
        """The sweep that a config describes; ValueError, in one line, where it describes none."""
        config = from_toml(text)
        ways = [way for way in KEYS if way in config]
        if len(ways) != 1:
            raise ValueError(f"a sweep has a table [grid] or [random]: {'leave one out' if ways else 'add one'}")
        way, = ways
        for key in config:
            if key not in (way, *KEYS[way]):
                raise ValueError(f"unknown key {key!r}; beside [{way}] there may be {', '.join(KEYS[way])}")
        fixed, varied = (_table(config, name) for name in ("options", way))
        if not varied:
            raise ValueError(f"[{way}] is empty: name the options to vary, such as lr")
        if both := [name for name in varied if name in fixed]:
            raise ValueError(f"{both[0]} is in [options] and in [{way}]: leave one out")
        base = _recipe(fixed, named(str(config["recipe"])) if "recipe" in config else Recipe(), "options")
        seeds = _values("seeds", config.get("seeds", [0]))
        for seed in seeds:
            replace(base, seed=seed)  # says what is wrong with it
        if way == "grid":
            given = _grid(varied)
        else:
            given = _drawn(varied, _whole(config, "samples", None, 1), _whole(config, "draw_seed", 0, 0))
        recipes = [_recipe(setting, base, way) for setting in given]
        settings = tuple({name: getattr(recipe, name) for name in varied} for recipe in recipes)
        return cls(base, settings, tuple(seeds))

    def jobs(self, folder: Path) -> list[Job]:
        """All runs, in order."""
        digits = len(str(len(self.settings)))
        jobs = []
        for number, setting in enumerate(self.settings, start=1):
            options = re.sub(r"[^\w.+=-]", "_", "-".join(label(setting).split(" ")), flags=re.ASCII)[:LONGEST]
            for seed in self.seeds:
                name = f"{number:0{digits}}-{options}-seed={seed}"
                jobs.append(Job(number - 1, replace(self.base, **setting, seed=seed), folder / name))
        return jobs

    @property
    def chosen_by(self) -> str:
        """Which figure of an Outcome the best setting is chosen by."""
        validated = all(setting.get("validation", self.base.validation) for setting in self.settings)
        return "validation_accuracy" if validated else "test_accuracy"


def label(setting: Setting) -> str:
    """A setting in one line, such as 'lr=0.01 layers=784-64-10'."""
    return " ".join(f"{name}={shown(value)}" for name, value in setting.items())


def shown(value: Any) -> str:
    """The value of an option as tables and names of folders show it."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table, [{name}]; got {table!r}")
    if "seed" in table:
        raise ValueError(f"seed in [{name}]: write seeds = [0, 1, 2], say, above the tables")
    return table


def _recipe(options: Mapping[str, Any], base: Recipe, table: str) -> Recipe:
    try:
        recipe = Recipe.from_mapping(options, base)
    except ValueError as error:
        raise ValueError(f"[{table}] {error}") from error
    if recipe.data != MNIST:
        recipe = replace(recipe, data=os.path.abspath(recipe.data))  # a worker may be in another folder
    return recipe


def _values(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} must be a list of one value or more; got {values!r}")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{name} has {value!r} twice")
    return values


def _whole(config: Mapping[str, Any], name: str, default: int | None, least: int) -> int:
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return value


def _grid(table: Mapping[str, Any]) -> list[Setting]:
    lists = [_values(f"[grid] {name}", values) for name, values in table.items()]
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*lists)]


def _drawn(table: Mapping[str, Any], samples: int, seed: int) -> list[Setting]:
    rng = np.random.default_rng(seed)
    kinds = {option.name: type(option.default) for option in fields(Recipe)}
    found: list[Setting] = []
    for _ in range(100 * samples):
        setting = {name: _draw(f"[random] {name}", source, kinds.get(name), rng) for name, source in table.items()}
        if setting not in found:
            found.append(setting)
        if len(found) == samples:
            return found
    raise ValueError(f"samples = {samples}, but what [random] draws is {len(found)} at most: lower samples")


def _draw(name: str, source: Any, kind: type | None, rng: np.random.Generator) -> Any:
    """One of a list of values, or a number from a range: a whole one for an option of such, else of 4 digits."""
    if not isinstance(source, dict):
        values = _values(name, source)
        return values[int(rng.integers(len(values)))]
    low: Any = source.get("low")
    high: Any = source.get("high")
    log = source.get("log", False)
    if kind not in (int, float):
        raise ValueError(f"{name} must be a list of values: it is no number")
    if unknown := source.keys() - {"low", "high", "log"}:
        raise ValueError(f"{name} has an unknown key {min(unknown)!r}; a range has low, high and log")
    for end, value in (("low", low), ("high", high)):
        if not (type(value) is int or (kind is float and type(value) is float and math.isfinite(value))):
            raise ValueError(f"{name} needs {end} = a {'whole ' * (kind is int)}number; got {value!r}")
    if not isinstance(log, bool):
        raise ValueError(f"{name} needs log = true or false; got {log!r}")
    if not low < high or (log and low <= 0):
        raise ValueError(f"{name} needs low below high{', and above 0' * log}; got {low!r} and {high!r}")
    if kind is int and not log:
        return int(rng.integers(low, high, endpoint=True))
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return round(value) if kind is int else min(max(float(f"{value:.4g}"), low), high)


# ---- running it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run of a sweep: which setting it has, and what any process needs to do it."""

    setting: int
    recipe: Recipe
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to after its last epoch; nothing but the reason where it `failed`. `seconds`: of its training;
    None on an emulated device."""

    test_accuracy: float | None = None
    test_cross_entropy: float | None = None
    validation_accuracy: float | None = None
    seconds: float | None = None
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"failed: {self.failed}"
        validation = "" if self.validation_accuracy is None else f"validation accuracy {self.validation_accuracy:.2%}, "
        return f"{validation}test accuracy {self.test_accuracy:.2%}, cross-entropy {self.test_cross_entropy:.4f}"


def prepare(config: Path, folder: Path) -> Sweep:
    """The sweep of a config, and its folder, new or as it was left. ValueError where another sweep lies there, or where
    a recipe does not fit its data."""
    sweep = Sweep.read(config)
    for setting in sweep.settings:
        recipe = replace(sweep.base, **setting)
        try:
            check_data(recipe, _dataset(recipe.data))
        except ValueError as error:
            raise ValueError(f"{config}: with {label(setting)}, {error}") from error
    if (folder / CONFIG).exists():
        if Sweep.read(folder / CONFIG) != sweep:
            raise ValueError(f"{folder} has the sweep of another config: choose another --out")
        return sweep
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is no sweep: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    serialize.write(folder / CONFIG, config.read_bytes())
    return sweep


def run(job: Job, device: str) -> Outcome:
    """Do a run, or what is left of it."""
    chosen, _ = gpu.choose(device)
    folder = Run.open(job.folder) if job.folder.exists() else Run.create(job.recipe, job.folder)
    if folder.recipe != job.recipe:
        raise ValueError(f"{job.folder} has another recipe than its sweep: undo the change, or delete the folder")
    try:
        with arrays.explaining("training", chosen):
            train(job.recipe, _dataset(job.recipe.data), run=folder, device=chosen)
    except FloatingPointError as error:
        folder.write(FAILURE, str(error).encode())
    except MemoryError as error:  # another time there may be more
        return Outcome(failed=str(error))
    return outcome(job)


@functools.lru_cache(maxsize=1)
def _dataset(name: str) -> Dataset:
    return load_data(name)


def is_done(job: Job) -> bool:
    """Whether a run need not be done again. One that was interrupted has a report too, of fewer epochs."""
    if (job.folder / FAILURE).exists():
        return True
    return (job.folder / REPORT).exists() and _report(job)["epochs"] == job.recipe.epochs


def outcome(job: Job) -> Outcome:
    """What the folder of a run that is done says of it."""
    if (job.folder / FAILURE).exists():
        return Outcome(failed=(job.folder / FAILURE).read_text(encoding="utf-8"))
    history = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [row["seconds"] for row in history]
    report = _report(job)
    return Outcome(
        test_accuracy=report["accuracy"],
        test_cross_entropy=report["cross_entropy"],
        validation_accuracy=history[-1].get("validation_accuracy"),
        seconds=None if None in seconds else sum(seconds),
    )


def _report(job: Job) -> dict[str, Any]:
    return json.loads((job.folder / REPORT).read_text(encoding="utf-8"))


# ---- what came of it ----------------------------------------------------------------------------------------------

FIGURES = ("validation_accuracy", "test_accuracy", "test_cross_entropy", "seconds")


def save_results(sweep: Sweep, outcomes: Mapping[Job, Outcome], folder: Path) -> None:
    """Write the table of the runs that are done."""
    rows = [
        {"run": job.folder.name, **{name: shown(value) for name, value in sweep.settings[job.setting].items()},
         "seed": job.recipe.seed, **asdict(outcomes[job])}
        for job in sweep.jobs(folder) if job in outcomes
    ]  # fmt: skip
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    serialize.write(folder / RESULTS, table.getvalue().encode())


def summary(sweep: Sweep, outcomes: Mapping[Job, Outcome]) -> list[dict[str, Any]]:
    """A row for each setting, the best first: its options, how many runs failed, and of each figure its mean and its
    values, seed by seed. Where runs failed, the setting comes after those that never did."""
    rows = []
    of = {(job.setting, job.recipe.seed): outcome for job, outcome in outcomes.items()}
    for number, setting in enumerate(sweep.settings):
        found = [of[number, seed] for seed in sweep.seeds]
        row = {"options": setting, "runs": len(found), "failed": sum(bool(outcome.failed) for outcome in found)}
        for figure in FIGURES:
            values = [value for outcome in found if (value := getattr(outcome, figure)) is not None]
            row[figure] = {"mean": float(np.mean(values)), "values": values} if values else None
        rows.append(row)

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        best = row[sweep.chosen_by]
        return row["failed"], -best["mean"] if best else 0.0

    return sorted(rows, key=rank)


def cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows of `summary` as text: of each figure that there is, the mean and, of several values, their range."""
    figures = [name for name in FIGURES if any(row[name] for row in rows)]
    found = []
    for row in rows:
        texts = {name: shown(value) for name, value in row["options"].items()}
        if any(row["failed"] for row in rows):
            texts["failed"] = f"{row['failed']} of {row['runs']}" if row["failed"] else ""
        for name in figures:
            texts[name.replace("_", " ")] = _figure(name, row[name]) if row[name] else ""
        found.append(texts)
    return found


def _figure(name: str, found: dict[str, Any]) -> str:
    unit, digits = {"test_cross_entropy": ("", 4), "seconds": ("", 1)}.get(name, ("%", 2))
    values = found["values"]
    mean, *ends = (f"{(100 if unit else 1) * v:.{digits}f}" for v in (found["mean"], min(values), max(values)))
    return f"{mean}{unit}" + (f" ({' to '.join(ends)})" if len(values) > 1 else "")


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """The picture of a summary: over the values of the option, if it is a single number that varies."""
    several = [name for name in rows[0]["options"] if len({row["options"][name] for row in rows}) > 1]
    x = several[0] if len(several) == 1 and type(rows[0]["options"][several[0]]) in (int, float) else None
    points = [
        {"label": label({name: row["options"][name] for name in several} or row["options"]),
         "x": row["options"][x] if x else None, "failed": row["failed"],
         **{part: found["values"] if (found := row[f"{part}_accuracy"]) else [] for part in ("validation", "test")}}
        for row in rows
    ]  # fmt: skip
    return plots.settings(points, x)
