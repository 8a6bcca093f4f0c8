"""What recording one operation, and its step of the backward walk, costs over the NumPy calls that they make.

    python benchmarks/op_overhead.py [--repeats 200]

Chains of operations on arrays of one element, so that Python is all that is measured. Bars: 1.5 us each. The smallest
of many repeats counts, because everything that disturbs a measurement of Python code makes it longer. Exits 1 above a
bar.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

import tinygrad_mnist as tg
from tinygrad_mnist import Tensor

BAR_US = 1.5
LENGTH = 200  # operations in a chain
one = np.ones(1, np.float32)
half = np.full(1, 0.5, np.float32)
CHAINS: dict[str, tuple[Callable, Callable, Callable]] = {  # Tensors; the NumPy call forward; the NumPy calls backward
    "t + array": (lambda t: t + one, lambda a: a + one, lambda g: g),
    "t + 1.0": (lambda t: t + 1.0, lambda a: a + 1.0, lambda g: g),
    "t * array": (lambda t: t * half, lambda a: a * half, lambda g: g * half),
    "tanh(t)": (tg.tanh, np.tanh, lambda g: g * (1 - half * half)),
    "np.tanh(t)": (np.tanh, np.tanh, lambda g: g * (1 - half * half)),
    "relu(t)": (tg.relu, lambda a: np.maximum(a, 0), lambda g: np.where(half > 0, g, 0)),
}


def chain(f: Callable, start: object) -> tuple[float, object]:
    value = start
    begin = time.perf_counter()
    for _ in range(LENGTH):
        value = f(value)
    return (time.perf_counter() - begin) / LENGTH * 1e6, value


def backward(result: Tensor) -> float:
    begin = time.perf_counter()
    result.backward(one)
    return (time.perf_counter() - begin) / LENGTH * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    missed = False
    heads = ("NumPy", 8), ("recorded", 9), ("over", 6), ("NumPy", 12), ("backward", 9), ("over", 6)
    print("us for one operation", *(f"{head:>{width}}" for head, width in heads))
    for name, (ours, forward, gradient) in CHAINS.items():
        leaf = Tensor(half.copy(), requires_grad=True)
        best = [float("inf")] * 4
        for _ in range(repeats):
            recorded, result = chain(ours, leaf)
            times = recorded, chain(forward, half)[0], backward(result), chain(gradient, one)[0]
            best = [min(old, new) for old, new in zip(best, times, strict=True)]
        over = best[0] - best[1], best[2] - best[3]
        missed |= name != "np.tanh(t)" and max(over) > BAR_US  # NumPy's own dispatch comes on top there
        print(f"{name:20} {best[1]:8.2f} {best[0]:9.2f} {over[0]:6.2f} {best[3]:12.2f} {best[2]:9.2f} {over[1]:6.2f}")
    print(f"bar {BAR_US} us for each: {'missed' if missed else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
