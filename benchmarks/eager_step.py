"""One eager training step (forward, backward, update, loss read back) against PyTorch eager and the bare products.

    python benchmarks/eager_step.py [--repeats 9] [--json FILE]

float32, random inputs. The tools take turns within one run, and the table shows medians over the repeats, in
microseconds; PyTorch runs with 1 and with 2 threads and the better counts, with its fused optimizer. "bare" is the
matrix products of the step alone, with `out=`. The ratios are the message: absolute times do not carry over to another
machine or hour. Needs torch for its column.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

import tinygrad_mnist as tg
from tinygrad_mnist import nn, optim

WORK = [  # sizes, batch, optimizer, bar against PyTorch, bar against the bare products
    ((784, 128, 64, 10), 1, "SGD", 0.55, None),
    ((784, 128, 64, 10), 128, "Adam", 0.85, None),
    ((784, 500, 250, 100, 10), 64, "SGD", 0.90, 1.40),
]
Step = Callable[[], object]


def inputs(sizes: tuple[int, ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((batch, sizes[0]), dtype=np.float32), rng.integers(0, 10, batch).astype(np.uint8)


def ours(sizes: tuple[int, ...], batch: int, optimizer: str) -> Step:
    x, y = inputs(sizes, batch)
    model = nn.MLP(sizes, rng=0)
    update = getattr(optim, optimizer)(model.parameters(), lr=1e-3)

    def step() -> float:
        loss = tg.softmax_cross_entropy(model(x), y)
        update.zero_grad()
        loss.backward()
        update.step()
        return float(loss)

    return step


def pytorch(sizes: tuple[int, ...], batch: int, optimizer: str, threads: int) -> Step:
    import torch

    images, labels = inputs(sizes, batch)
    x, y = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    layers: list[torch.nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    update = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3, fused=True)
    loss_of = torch.nn.functional.cross_entropy

    def step() -> float:
        loss = loss_of(model(x), y)
        update.zero_grad()
        loss.backward()
        update.step()
        return loss.item()

    def with_threads() -> float:
        torch.set_num_threads(threads)
        return step()

    return with_threads


def bare_products(sizes: tuple[int, ...], batch: int) -> Step:
    rng = np.random.default_rng(0)
    h = [rng.random((batch, n), dtype=np.float32) for n in sizes]
    weights = [rng.random((m, n), dtype=np.float32) for m, n in pairwise(sizes)]
    z = [np.empty((batch, n), np.float32) for n in sizes[1:]]
    dh = [np.empty_like(a) for a in h]
    dw = [np.empty_like(w) for w in weights]

    def step() -> None:
        for i, w in enumerate(weights):
            np.matmul(h[i], w, out=z[i])
        for i in reversed(range(len(weights))):
            np.matmul(h[i].T, z[i], out=dw[i])
            if i:
                np.matmul(z[i], weights[i].T, out=dh[i])

    return step


def time_in_turn(steps: dict[str, Step], repeats: int, seconds: float = 0.15) -> dict[str, list[float]]:
    """Microseconds a step: for each tool the medians of `repeats` blocks of steps, the tools taking turns."""
    counts = {}
    for name, step in steps.items():
        for _ in range(5):
            step()
        start = time.perf_counter()
        for _ in range(5):
            step()
        counts[name] = max(5, int(seconds * 5 / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()
            times = []
            for _ in range(counts[name]):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
            samples[name].append(statistics.median(times) * 1e6)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", help="write all samples to this file")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        torch = None
        print("torch is not installed: no PyTorch column")
    everything = []
    print(f"{'work':44} {'ours':>8} {'PyTorch':>8} {'bare':>8}   {'ours/PyTorch':>14} {'ours/bare':>16}")
    for sizes, batch, optimizer, bar_torch, bar_bare in WORK:
        steps = {"ours": ours(sizes, batch, optimizer), "bare": bare_products(sizes, batch)}
        if torch is not None:
            steps |= {f"PyTorch {k}": pytorch(sizes, batch, optimizer, k) for k in (1, 2)}
        samples = time_in_turn(steps, args.repeats)
        median = {name: statistics.median(values) for name, values in samples.items()}
        best = min((v for name, v in median.items() if name.startswith("PyTorch")), default=float("nan"))
        work = f"{'-'.join(map(str, sizes))}, batch {batch}, {optimizer}"
        of_torch = f"{median['ours'] / best:.2f} (<= {bar_torch:.2f})"
        of_bare = f"{median['ours'] / median['bare']:.2f}" + (f" (<= {bar_bare:.2f})" if bar_bare else "")
        times = f"{median['ours']:8.0f} {best:8.0f} {median['bare']:8.0f}"
        print(f"{work:44} {times}   {of_torch:>14} {of_bare:>16}", flush=True)
        everything.append({"work": work, "microseconds": samples})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
