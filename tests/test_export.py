"""The exported script repeats our run, in a process that has no tinygrad_mnist."""

import re
import subprocess
import sys

import numpy as np
import pytest
import small

from tinygrad_mnist.export import script, write
from tinygrad_mnist.recipe import Recipe
from tinygrad_mnist.train import train

BASE = {"layers": (784, 16, 10), "batch": 64, "epochs": 2, "dtype": "float64"}


def run(folder, recipe):
    """(parameters, losses) of the script, run on the small data set."""
    (folder / "train_mnist.py").write_text(script(recipe), encoding="utf-8")
    small.save_npz(folder / "small.npz")
    block = "import sys; sys.modules['tinygrad_mnist'] = None; sys.argv = sys.argv[1:]; import runpy; "
    block += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-W", "error", "-c", block, "train_mnist.py", "small.npz", "--save", "weights.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "weights.npz") as file:
        weights = {name: file[name] for name in file.files}
    return weights, [float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "lr": 0.1, "schedule": "constant", "loss": "mse", "activation": "sigmoid"},
        {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "activation": "tanh", "weight_decay": 0.01},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "l2": 0.01, "init": "he_normal", "validation": 0.2},
        {"optimizer": "adamw", "weight_decay": 0.1, "dropout": 0.2, "init": "normal(0.05)", "clip": 0.5, "seed": 3},
        {"optimizer": "adam", "weight_decay": 0.1, "activation": "gelu", "layers": (784, 12, 11, 10)},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_the_script_repeats_the_run(tmp_path, options):
    recipe = Recipe(**{**BASE, **options})
    weights, losses = run(tmp_path, recipe)
    training = train(recipe, small.dataset())
    for name, p in ((p.name, p.data) for p in training.model.parameters()):
        np.testing.assert_allclose(weights[name], p, rtol=1e-9, atol=1e-9 * np.abs(p).max())
    np.testing.assert_allclose(losses, [row["train_loss"] for row in training.history], rtol=1e-7)


def test_in_float32_the_losses_agree(tmp_path):
    recipe = Recipe(**{**BASE, "dtype": "float32"})
    _, losses = run(tmp_path, recipe)
    np.testing.assert_allclose(losses, [r["train_loss"] for r in train(recipe, small.dataset()).history], rtol=1e-4)


def test_the_data_lie_beside_the_script(tmp_path):
    files = write(Recipe(), tmp_path / "train_mnist.py")
    assert [path.name for path in files] == ["train_mnist.py", "mnist.npz"]
    assert write(Recipe(), tmp_path / "again.py") == [tmp_path / "again.py"]
    text = (tmp_path / "train_mnist.py").read_text(encoding="utf-8")
    assert "import tinygrad_mnist" not in text
    compile(text, "train_mnist.py", "exec")


def test_a_recipe_with_distortions_is_refused():
    with pytest.raises(ValueError, match="^a script has no distortions: leave elastic, rotation, .* at 0$"):
        script(Recipe(rotation=1.0))


def test_cupy_names_cupy(tmp_path):
    text = script(Recipe(), cupy=True)
    compile(text, "train_mnist.py", "exec")
    assert "import cupy as cp" in text
    assert "cp.maximum" in text
