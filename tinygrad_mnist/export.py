"""`tinygrad-mnist export`: the training that a recipe describes as one script that needs NumPy (or CuPy) alone.

Forward and backward are what `explain` derives; around them stand the reading of the data, the random numbers, the
optimizer, the schedule and the loop, in the same order as in `train`, so that the script repeats our run.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import fields
from pathlib import Path

from . import data
from .explanation import explain_network
from .recipe import MNIST, Recipe

DATA = "mnist.npz"
"""The name of the data file beside the script."""


def write(recipe: Recipe, out: Path, *, cupy: bool = False) -> list[Path]:
    """Write the script to `out`, and the embedded MNIST beside it if that is the data; the files written."""
    text = script(recipe, cupy=cupy)
    out.write_text(text, encoding="utf-8")
    beside = out.with_name(DATA)
    if recipe.data != MNIST or beside.exists():
        return [out]
    shutil.copyfile(Path(data.__file__).with_name(DATA), beside)
    return [out, beside]


def script(recipe: Recipe, *, cupy: bool = False) -> str:
    """The source of the script. ValueError for a recipe with distortions, which no script has."""
    if recipe.distorts:
        raise ValueError("a script has no distortions: leave elastic, rotation, shear, scale and shift at 0")
    xp = "cp" if cupy else "np"
    library = "cupy" if cupy else "numpy"
    network = {"dtype": recipe.dtype, "dropout": recipe.dropout, "xp": library}
    gradients = explain_network(recipe.layers, recipe.activation, recipe.loss, **network)  # type: ignore[arg-type]
    logits = explain_network(recipe.layers, recipe.activation, training=False, **network)  # type: ignore[arg-type]
    changed = [f for f in fields(Recipe) if getattr(recipe, f.name) != f.default]
    options = " ".join(f"{f.name}={getattr(recipe, f.name)}" for f in changed) or "the defaults"
    names = {"layers": "-".join(map(str, recipe.layers)), "library": "CuPy" if cupy else "NumPy"}
    parts = [
        _HEAD.format(**names, options=options, cupy="\nimport cupy as cp" if cupy else ""),
        _settings(recipe),
        _DATA.replace("DEFAULT", json.dumps(DATA if recipe.data == MNIST else recipe.data)),
        _random(recipe),
        _function(logits),
        _function(gradients),
        _schedule(recipe),
        _optimizer(recipe, xp),
        _loop(recipe, xp),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _function(text: str) -> str:
    """The function without its import."""
    return text.partition("\n")[2]


_HEAD = '''
"""Trains a network {layers} to read digits: {library} alone, no automatic differentiation.

    python train_mnist.py [DATA] [--save weights.npz]

DATA is an .npz with x_train, y_train, x_test and y_test, or a folder with the four IDX files of MNIST. Written by
tinygrad-mnist export, for the recipe: {options}.
"""

import argparse
import gzip
import math
from pathlib import Path
{cupy}
import numpy as np
'''

_DATA = '''
def read_idx(folder, name):
    """An array from a file of the IDX format, plain or compressed."""
    path = Path(folder) / name
    opened = open(path, "rb") if path.exists() else gzip.open(f"{path}.gz")
    with opened as file:
        rank = file.read(4)[3]
        shape = np.frombuffer(file.read(4 * rank), ">i4")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def load(path):
    """(x_train, y_train, x_test, y_test): uint8 images (n, height, width), labels (n,)."""
    if Path(path).is_dir():
        names = "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"
        return tuple(read_idx(path, f"{name}-ubyte") for name in names)
    with np.load(path) as file:
        return tuple(file[name] for name in ("x_train", "y_train", "x_test", "y_test"))


def default_data():
    return Path(__file__).parent / DEFAULT


def preprocess(images):
    """One row of numbers from 0 to 1 for each image."""
    pixels = images.astype(DTYPE)
    pixels *= 1 / 255
    return pixels.reshape(len(images), -1)
'''


def _settings(recipe: Recipe) -> str:
    lines = [
        f"LAYERS = {recipe.layers!r}",
        f'DTYPE = "{recipe.dtype}"',
        f"SEED = {recipe.seed}",
        f"EPOCHS = {recipe.epochs}",
        f"BATCH = {recipe.batch}",
        f"LR = {recipe.lr!r}",
    ]
    if recipe.l2:
        lines.append(f"L2 = {recipe.l2!r}  # the loss has L2 / 2 times the sum of all squared weights more")
    if recipe.weight_decay:
        lines.append(f"WEIGHT_DECAY = {recipe.weight_decay!r}")
    if recipe.clip:
        lines.append(f"CLIP = {recipe.clip!r}  # the largest norm of the gradient")
    if recipe.validation:
        lines.append(f"VALIDATION = {recipe.validation!r}  # share of the training images held out")
    if recipe.optimizer == "sgd":
        if recipe.momentum:
            lines.append(f"MOMENTUM = {recipe.momentum!r}")
    else:
        lines.append("BETA1, BETA2, EPS = 0.9, 0.999, 1e-08")
    return "\n".join(lines)


def _random(recipe: Recipe) -> str:
    normal = recipe.init.startswith("normal(") or recipe.init.endswith("normal") or recipe.init == "normal"
    scale = {
        "glorot_uniform": "math.sqrt(6 / (n_in + n_out))", "xavier_uniform": "math.sqrt(6 / (n_in + n_out))",
        "glorot_normal": "math.sqrt(2 / (n_in + n_out))", "xavier_normal": "math.sqrt(2 / (n_in + n_out))",
        "he_uniform": "math.sqrt(6 / n_in)", "he_normal": "math.sqrt(2 / n_in)", "zeros": "0.0", "normal": "1.0",
    }.get(recipe.init)  # fmt: skip
    if scale is None:
        scale = repr(float(recipe.init[len("normal(") : -1]))
    drawn = "(scale * rng.standard_normal((n_in, n_out)))" if normal else "rng.uniform(-scale, scale, (n_in, n_out))"
    streams = "SPLIT, INIT, SHUFFLE, DROPOUT = range(4)"
    return f'''
{streams}  # each use of random numbers has a stream of its own


def generator(stream, epoch=0):
    return np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(stream, epoch)))


def initial_parameters():
    """[W1, b1, W2, b2, ...]: weights by {recipe.init}, biases 0."""
    rng = generator(INIT)
    params = []
    for n_in, n_out in zip(LAYERS[:-1], LAYERS[1:]):
        scale = {scale}
        params += [{drawn}.astype(DTYPE), np.zeros(n_out, DTYPE)]
    return params
'''


_SCHEDULES = {
    "constant": '''
def learning_rate(step, steps):
    """The same at every step."""
    return LR
''',
    "cosine": '''
def learning_rate(step, steps):
    """Half a cosine from LR to 0."""
    return anneal(LR, 0.0, step / max(steps - 1, 1))
''',
    "one_cycle": '''
def learning_rate(step, steps):
    """Half a cosine up from LR / 25 to LR over 30 % of the steps, then half a cosine down to LR / 250 000."""
    top = 0.3 * (steps - 1)
    if step < top:
        return anneal(LR / 25, LR, step / top)
    return anneal(LR, LR / 25 / 1e4, (step - top) / max(steps - 1 - top, 1))
''',
}
_ANNEAL = '''
def anneal(start, end, part):
    return end + (start - end) * (1 + math.cos(math.pi * min(part, 1.0))) / 2
'''


def _schedule(recipe: Recipe) -> str:
    own = _SCHEDULES[recipe.schedule].strip("\n")
    return own if recipe.schedule == "constant" else f"{_ANNEAL.strip()}\n\n\n{own}"


def _optimizer(recipe: Recipe, xp: str) -> str:
    """`update(params, gradients, state, step, lr)`, in place."""
    decay = ["    g = g + WEIGHT_DECAY * p"] if recipe.weight_decay and recipe.optimizer != "adamw" else []
    states, lines = "", []
    if recipe.optimizer == "sgd":
        title = "p -= lr g"
        if recipe.momentum:
            title = "v = MOMENTUM v + g;  p -= lr v"
            states = "v"
            lines = ["    v *= MOMENTUM", "    v += g"]
        if recipe.nesterov:
            title = "v = MOMENTUM v + g;  p -= lr (g + MOMENTUM v)"
        step = "g + MOMENTUM * v" if recipe.nesterov else "v" if recipe.momentum else "g"
        lines.append(f"    p -= lr * {f'({step})' if recipe.nesterov else step}")
    else:
        title = "Adam (Kingma and Ba 2015)"
        states = "m, v"
        if recipe.optimizer == "adamw":
            title = "AdamW (Loshchilov and Hutter 2019)"
            decay = ["    p -= lr * WEIGHT_DECAY * p"] if recipe.weight_decay else []
        lines = [
            "    m *= BETA1",
            "    m += (1 - BETA1) * g",
            "    v *= BETA2",
            "    v += (1 - BETA2) * g**2",
            "    m_hat = m / (1 - BETA1**step)",
            "    v_hat = v / (1 - BETA2**step)",
            f"    p -= lr * m_hat / ({xp}.sqrt(v_hat) + EPS)",
        ]
    inner = f"({states})" if ", " in states else states
    heads = f"for p, g, {inner} in zip(params, gradients, state):" if states else "for p, g in zip(params, gradients):"
    count = len(states.split(", ")) if states else 0
    zeros = ", ".join([f"{xp}.zeros_like(p)"] * count)
    state = f"[({zeros}) for p in params]" if count > 1 else f"[{zeros} for p in params]" if count else "None"
    made = f'def initial_state(params):\n    return {state}\n\n\n' if count else ""
    before = []
    if recipe.l2:
        before.append("gradients = [g + L2 * p if p.ndim == 2 else g for p, g in zip(params, gradients)]")
    if recipe.clip:
        before += [
            f"norm = math.sqrt(sum(float({xp}.vdot(g, g)) for g in gradients))",
            "if norm > CLIP:",
            "    gradients = [g * (CLIP / norm) for g in gradients]",
        ]
    arguments = ", ".join(["gradients", *(["state"] if count else []), *(["step"] if count == 2 else []), "lr"])
    body = textwrap.indent("\n".join([*before, heads, *decay, *lines]), "    ")
    return f'{made}def update(params, {arguments}):\n    """{title}: one step, in place."""\n{body}'


def _loop(recipe: Recipe, xp: str) -> str:
    state = recipe.optimizer != "sgd" or bool(recipe.momentum)
    counts = recipe.optimizer != "sgd"
    rng = ", rng" if recipe.dropout else ""
    there = "cp.asarray" if xp == "cp" else ""
    split = '''
    held = round(VALIDATION * len(x_train))
    order = generator(SPLIT).permutation(len(x_train))
    x_train, y_train = x_train[order[held:]], y_train[order[held:]]
''' if recipe.validation else ""  # fmt: skip
    parts = "x_train, y_train, x_test, y_test"
    move = f"\n    {parts} = map(cp.asarray, ({parts}))" if there else ""
    params = "[cp.asarray(p) for p in initial_parameters()]" if there else "initial_parameters()"
    arguments = ", ".join(["gradients", *(["state"] if state else []), *(["step"] if counts else []), "lr"])
    rows = "cp.asarray(order[start : start + BATCH])" if there else "order[start : start + BATCH]"
    save = "cp.asnumpy(p)" if there else "p"
    made = "\n    state = initial_state(params)" if state else ""
    dropout = "\n        rng = generator(DROPOUT, epoch)" if recipe.dropout else ""
    return f'''
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default=default_data(), help="an .npz, or a folder of IDX files")
    parser.add_argument("--save", help="write the parameters to this .npz")
    arguments = parser.parse_args()

    x_train, y_train, x_test, y_test = load(arguments.data){split}{move}
    params = {params}{made}
    n = len(x_train)
    steps = EPOCHS * math.ceil(n / BATCH)
    step = 0
    for epoch in range(EPOCHS):
        order = generator(SHUFFLE, epoch).permutation(n){dropout}
        total = 0.0
        for start in range(0, n, BATCH):
            rows = {rows}
            x, y = preprocess(x_train[rows]), y_train[rows]
            loss, gradients = loss_and_gradients(x, y, *params{rng})
            total += float(loss) * len(x)
            lr = learning_rate(step, steps)
            step += 1
            update(params, {arguments})
        right = (logits(preprocess(x_test), *params).argmax(axis=1) == y_test).mean()
        print(f"epoch {{epoch + 1}}: loss {{total / n:.8f}}, test accuracy {{float(right):.2%}}", flush=True)
    if arguments.save:
        names = [f"{{kind}}{{k}}" for k in range(1, len(LAYERS)) for kind in "Wb"]
        np.savez(arguments.save, **{{name: {save} for name, p in zip(names, params)}})


if __name__ == "__main__":
    main()
'''
