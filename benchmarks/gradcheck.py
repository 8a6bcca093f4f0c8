"""The gradient checker against torch.autograd.gradcheck (slow and fast), jax.test_util.check_grads and autograd's
check_grads: every figure of the README's section on gradient checking.

    python benchmarks/gradcheck.py [scores speed needle precision memory] [--repeats 7] [--seeds 3] [--json FILE]

All parts by default. Bars are printed with each figure. Peers that are not installed are named and left out: none is a
dependency of the project.

scores     the judge of tests/judge: false alarms on correct rules, misses of wrong ones. A peer gets each case as an
           operation of its own framework: a torch.autograd.Function, a jax.custom_vjp, an autograd primitive. It says
           yes or no: an exception is a no. It is not charged for a mistake that its engine repairs before a user could
           see it (torch: shape and dtype of a gradient; JAX: those, and writing to arrays, which it does not have).
           torch slow is not asked about more than 10 000 elements.
speed      checks that pass. torch runs its own operations on its own tensors, ours NumPy functions (`check_vjp`) and
           our Tensors (`check`). The tools take turns; the table shows medians over the repeats, of the ratios too.
needle     one element of 100 000 wrong by 1 %: is it found, is its index named, with how many evaluations of f.
precision  every element wrong by a relative error: is it found.
memory     the peak of what a check allocates, over the bytes of its input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np

import tinygrad_mnist as tg
from tinygrad_mnist.gradcheck import check, check_vjp

try:
    import torch
except ImportError:
    torch = None
try:
    import jax
    from jax.test_util import check_grads as jax_check_grads
    jax.config.update("jax_enable_x64", True)
except ImportError:
    jax = None
try:
    import autograd
    from autograd.extend import defvjp_argnums, primitive
    from autograd.test_util import check_grads as autograd_check_grads
except ImportError:
    autograd = None

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
MOST_ELEMENTS = 10_000
CANNOT = "cannot"

# ---- peers: checker(f, vjp, arrays, wrt, seed) -> "pass", "fail" or CANNOT -------------------------------------------


def ours(f, vjp, arrays, wrt, seed):
    report = check_vjp(f, vjp, arrays, wrt, seed=seed)
    reason = report.items[0].reason if report.items else ""
    item = next((i for i in report.items if i.index is not None), None)
    return report.verdict, reason, item and (item.input, item.index)


def floats_of(arrays, wrt):
    return tuple(i for i, a in enumerate(arrays) if a.dtype.kind == "f") if wrt is None else tuple(wrt)


def answer(check_grads: Callable[[], object]) -> str:
    """A peer says no by any exception."""
    try:
        check_grads()
    except Exception:
        return "fail"
    return "pass"


def torch_checker(fast):
    def checker(f, vjp, arrays, wrt, seed):
        wrt = floats_of(arrays, wrt)
        if not fast and sum(arrays[i].size for i in wrt) > MOST_ELEMENTS:
            return CANNOT
        single = not isinstance(f(*(a.copy() for a in arrays)), tuple)

        class Operation(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *xs):
                ctx.save_for_backward(*xs)
                y = f(*(x.detach().numpy() for x in xs))
                as_tensor = lambda a: torch.from_numpy(np.array(a))  # noqa: E731
                return tuple(map(as_tensor, y)) if isinstance(y, tuple) else as_tensor(y)

            @staticmethod
            def backward(ctx, *gs):
                gs = tuple(g.numpy() for g in gs)
                found = vjp(gs[0] if single else gs, *(x.numpy() for x in ctx.saved_tensors))
                given = dict(zip(wrt, found, strict=True))
                return tuple(torch.from_numpy(np.array(given[i])) if i in given else None for i in range(len(arrays)))

        inputs = [torch.from_numpy(np.array(a)).clone(memory_format=torch.contiguous_format) for a in arrays]
        for i in wrt:
            inputs[i].requires_grad_()
        return answer(lambda: torch.autograd.gradcheck(Operation.apply, inputs, fast_mode=fast))

    return checker


def jax_checker(f, vjp, arrays, wrt, seed):
    wrt = floats_of(arrays, wrt)
    out = f(*(a.copy() for a in arrays))

    def whole(xs):
        values = list(arrays)
        for i, x in zip(wrt, xs, strict=True):
            values[i] = np.array(x)
        return values

    def forward(*xs):
        y = f(*whole(xs))
        return tuple(map(jax.numpy.asarray, y)) if isinstance(y, tuple) else jax.numpy.asarray(y)

    def backward(xs, g):
        g = tuple(map(np.array, g)) if isinstance(out, tuple) else np.array(g)
        return tuple(map(jax.numpy.asarray, vjp(g, *whole(xs))))

    operation = jax.custom_vjp(forward)
    operation.defvjp(lambda *xs: (forward(*xs), xs), backward)
    inputs = [jax.numpy.asarray(arrays[i]) for i in wrt]
    return answer(lambda: jax_check_grads(operation, inputs, order=1, modes=["rev"]))


def autograd_checker(f, vjp, arrays, wrt, seed):
    wrt = floats_of(arrays, wrt)
    operation = primitive(f)
    defvjp_argnums(operation, lambda argnums, ans, args, kwargs: lambda g: [
        dict(zip(wrt, vjp(g, *args), strict=True))[i] for i in argnums])
    np.random.seed(seed)  # noqa: NPY002  (autograd draws from it)
    return answer(lambda: autograd_check_grads(operation, wrt, modes=["rev"], order=1)(*(a.copy() for a in arrays)))


def peers() -> dict[str, Callable]:
    found = {}
    if torch is not None:
        found |= {"torch slow": torch_checker(False), "torch fast": torch_checker(True)}
    if jax is not None:
        found["jax"] = jax_checker
    if autograd is not None:
        found["autograd"] = autograd_checker
    return found


REPAIRED = {"torch slow": {"shape", "dtype"}, "torch fast": {"shape", "dtype"}, "jax": {"shape", "dtype", "hygiene"}}

# ---- the parts -------------------------------------------------------------------------------------------------------


def bar(holds: bool, text: str) -> str:
    return f"{text}: {'met' if holds else 'MISSED'}"


def percent(part: int, whole: int) -> str:
    return f"{part:5} of {whole:5} ({100 * part / max(whole, 1):4.1f} %)"


def scores(args) -> dict:
    from judge import score
    from judge.case import CASES

    print(f"\nscores: {len(CASES)} cases, {args.seeds} seeds")
    print(f"{'tool':12} {'false alarms':>22} {'misses':>22} {'imprecise':>10} {'not asked':>10} {'seconds':>8}")
    result = {}
    for name, checker in ({"ours": ours} | peers()).items():
        start = time.perf_counter()
        trials = score(checker, args.seeds).trials
        seconds = time.perf_counter() - start
        asked = [t for t in trials if t.verdict != CANNOT]
        right = [t for t in asked if t.case.correct]
        wrong = [t for t in asked if not t.case.correct]
        if name == "ours":
            alarms, misses = ([t for t in asked if t.outcome == what] for what in ("false alarm", "miss"))
        else:  # yes or no: any kind of yes or no is taken
            alarms = [t for t in right if t.verdict != "pass"]
            misses = [t for t in wrong if t.verdict == "pass" and not t.case.reason & REPAIRED.get(name, set())]
        imprecise = sum(t.outcome == "imprecise" for t in asked) if name == "ours" else None
        left_out = len(trials) - len(asked)
        print(f"{name:12} {percent(len(alarms), len(right)):>22} {percent(len(misses), len(wrong)):>22} "
              f"{'' if imprecise is None else imprecise:>10} {left_out:10} {seconds:8.1f}", flush=True)
        result[name] = {
            "correct": len(right), "false alarms": len(alarms), "wrong": len(wrong), "misses": len(misses),
            "imprecise": imprecise, "not asked": left_out, "seconds": seconds,
            "alarmed": sorted({t.case.name for t in alarms}), "missed": sorted({t.case.name for t in misses}),
        }
    mine = result["ours"]
    print(bar(mine["false alarms"] == mine["misses"] == 0, "bar: ours 0 and 0"))
    print(bar(mine["imprecise"] <= 0.01 * len(trials), "bar: verdict and reason precise in at least 99 %"))
    return result


def rule_of(derivative):
    return lambda g, x: (g * derivative(x),)


def matmul_rule(g, a, b):
    return g @ b.T, a.T @ g


SIZES = (784, 128, 64, 10)


def mlp(batch=32):
    """A loss of our Tensors and one of torch's, of the same numbers: 109 386 parameters."""
    rng = np.random.default_rng(0)
    x, y = rng.random((batch, SIZES[0])), rng.integers(0, 10, batch)
    parameters = []
    for n, m in pairwise(SIZES):
        parameters += [rng.normal(size=(n, m)) * (2 / n) ** 0.5, rng.normal(size=m) * 0.1]

    def loss(*p):
        h = tg.relu(tg.relu(x @ p[0] + p[1]) @ p[2] + p[3]) @ p[4] + p[5]
        return tg.softmax_cross_entropy(h, y)

    def torch_loss(*p):
        h = torch.relu(torch.relu(torch.from_numpy(x) @ p[0] + p[1]) @ p[2] + p[3]) @ p[4] + p[5]
        return torch.nn.functional.cross_entropy(h, torch.from_numpy(y))

    return loss, torch_loss, parameters


def in_turn(tools: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each tool, which take turns; the first call is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in tools}
    for repeat in range(repeats + 1):
        for name, run in tools.items():
            start = time.perf_counter()
            run()
            if repeat:
                samples[name].append(time.perf_counter() - start)
    return samples


def passes(report):
    assert report.ok, report
    return report


def speed(args) -> dict:
    rng = np.random.default_rng(0)
    x, long = rng.normal(size=1000), rng.normal(size=100_000)
    a, b = rng.normal(size=(40, 40)), rng.normal(size=(40, 40))
    loss, torch_loss, parameters = mlp()
    evals = {}

    def numpy_check(what, *arguments, **kw):
        def run():
            evals[what] = passes(check_vjp(*arguments, **kw)).evals
        return run

    def tensor_check(what, *arguments, **kw):
        def run():
            evals[what] = passes(check(*arguments, **kw)).evals
        return run

    def torch_check(fn, *arrays, fast):
        if torch is None:
            return None
        inputs = [torch.from_numpy(array).requires_grad_() for array in arrays]
        return lambda: torch.autograd.gradcheck(fn, inputs, fast_mode=fast)

    sin, cos = (np.sin, rule_of(np.cos)), {"mode": "elements"}
    ops = {"sin": torch.sin, "matmul": torch.matmul} if torch is not None else {"sin": None, "matmul": None}
    work = {  # name: tools, and the bar as (tools, what they may take relative to torch slow, or seconds)
        "sin, N = 1000, per element": {
            "check_vjp": numpy_check("sin", *sin, [x], **cos),
            "check": tensor_check("sin", tg.sin, x, **cos),
            "torch slow": torch_check(ops["sin"], x, fast=False)},
        "matmul 40x40, per element": {
            "check_vjp": numpy_check("matmul", np.matmul, matmul_rule, [a, b], **cos),
            "check": tensor_check("matmul", tg.matmul, a, b, **cos),
            "torch slow": torch_check(ops["matmul"], a, b, fast=False)},
        "sin, N = 100 000, projection": {
            "check_vjp": numpy_check("projection", *sin, [long]),
            "check": tensor_check("projection, Tensors", tg.sin, long),
            "torch fast": torch_check(ops["sin"], long, fast=True)},
        "MLP 784-128-64-10, batch 32": {
            "check": tensor_check("MLP", loss, *parameters),
            "torch fast": torch_check(torch_loss, *parameters, fast=True)},
    }
    print(f"\nspeed: milliseconds, medians of {args.repeats}")
    print(f"{'work':32} {'check_vjp':>10} {'check':>10} {'torch slow':>10} {'torch fast':>10}  ours, of torch")
    result = {}
    for what, tools in work.items():
        samples = in_turn({name: run for name, run in tools.items() if run is not None}, args.repeats)
        ms = {name: 1000 * statistics.median(values) for name, values in samples.items()}
        columns = " ".join(f"{ms[name]:10.1f}" if name in ms else f"{'':10}"
                           for name in ("check_vjp", "check", "torch slow", "torch fast"))
        peer = next((name for name in ("torch slow", "torch fast") if name in ms), None)
        ratios = [statistics.median(a / b for a, b in zip(samples[name], samples[peer], strict=True))
                  for name in ("check_vjp", "check") if peer and name in ms]
        print(f"{what:32} {columns}  {' and '.join(f'{r:.2f}' for r in ratios)}", flush=True)
        result[what] = {"milliseconds": ms, "samples": samples}
        if peer == "torch slow":
            print("    " + bar(max(ratios) <= 0.5, "bar: both at most 0.50 of torch slow"))
    result["evaluations"] = evals
    seconds = result["MLP 784-128-64-10, batch 32"]["milliseconds"]["check"] / 1000
    print(bar(evals["projection"] <= 40, f"bar: {evals['projection']} evaluations for 100 000 elements <= 40"))
    count = sum(p.size for p in parameters)
    print(bar(seconds <= 3, f"bar: MLP of {count} parameters in {seconds:.2f} s <= 3 s ({evals['MLP']} evaluations)"))
    print("torch's fast mode is the faster one: it evaluates one direction, 3 times.")
    return result


def needle(args) -> dict:
    """One of 100 000 off by 1 %."""
    n, seeds = 100_000, range(100)
    found = named = 0
    evals, fast, jax_found, autograd_found = [], 0, 0, 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        x, at = rng.normal(size=n), (int(rng.integers(n)),)

        def vjp(g, x, at=at):
            a = g * np.cos(x)
            a[at] *= 1.01
            return (a,)

        report = check_vjp(np.sin, vjp, [x], seed=seed)
        found += report.verdict == "fail"
        named += any(item.index == at and item.verdict == "fail" for item in report.items)
        evals.append(report.evals)
        if torch is not None:
            fast += torch_checker(True)(np.sin, vjp, [x], None, seed) == "fail"
        if jax is not None:
            jax_found += jax_checker(np.sin, vjp, [x], None, seed) == "fail"
        if autograd is not None:
            autograd_found += autograd_checker(np.sin, vjp, [x], None, seed) == "fail"
    print(f"\nneedle: sin of {n} elements, one gradient x 1.01, {len(seeds)} seeds")
    print(f"ours found {found}, index named {named}; evaluations of f: median {statistics.median(evals):.0f}, "
          f"largest {max(evals)}")
    peer = {"torch fast": fast, "jax": jax_found, "autograd": autograd_found}
    installed = {"torch fast": torch, "jax": jax, "autograd": autograd}
    peer = {name: count for name, count in peer.items() if installed[name] is not None}
    print("; ".join(f"{name} found {count}" for name, count in peer.items()) + "; torch slow would need 80 GB")
    print(bar(found == named == len(seeds) and max(evals) <= 450, "bar: all, named, at most 450 evaluations"))
    return {"found": found, "named": named, "evaluations": evals, "peers": peer}


def precision(args) -> dict:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(8, 8)), rng.normal(size=(8, 8))
    functions = {
        "sin, N = 100": (np.sin, rule_of(np.cos), [rng.normal(size=100)]),
        "sin, N = 100 000": (np.sin, rule_of(np.cos), [rng.normal(size=100_000)]),
        "matmul 8x8": (np.matmul, matmul_rule, [a, b]),
        "exp at 30": (np.exp, rule_of(np.exp), [np.full(10, 30.0)]),
    }
    print("\nprecision: which relative error of every element is found")
    print(f"{'function':20} {'tool':12} " + " ".join(f"{e:>6g}" for e in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)))
    result, all_found = {}, True
    for what, (f, vjp, arrays) in functions.items():
        for name, checker in ({"ours": ours} | peers()).items():
            row = {}
            for error in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
                def wrong(g, *xs, vjp=vjp, error=error):
                    return tuple(d * (1 + error) for d in vjp(g, *xs))

                verdict = checker(f, wrong, arrays, None, 0)
                row[error] = verdict if isinstance(verdict, str) else verdict[0]
            print(f"{what:20} {name:12} " + " ".join(
                f"{ {'fail': 'yes', 'pass': 'no'}.get(v, v):>6}" for v in row.values()), flush=True)
            result[f"{what}: {name}"] = row
            all_found &= name != "ours" or row[1e-6] == "fail"
    print(bar(all_found, "bar: ours finds 1e-6"))
    return result


def memory(args) -> dict:
    print("\nmemory: peak of a check of sin, over the bytes of its input")
    result = {}
    for n in (100_000, 1_000_000):
        x = np.random.default_rng(0).normal(size=n)
        check_vjp(np.sin, rule_of(np.cos), [x[:100]])
        tracemalloc.start()
        passes(check_vjp(np.sin, rule_of(np.cos), [x]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        result[n] = peak / x.nbytes
        print(f"N = {n:9}: {peak / 2**20:8.1f} MiB, {result[n]:5.1f} times the input")
    low, high = result.values()
    print(bar(high <= 1.2 * low, "bar: O(N + M), the ratio does not grow"))
    return result


PARTS = {"scores": scores, "speed": speed, "needle": needle, "precision": precision, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="of each timing (default: 7)")
    parser.add_argument("--seeds", type=int, default=3, help="of the judge (default: 3)")
    parser.add_argument("--json", help="write all figures to this file")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    warnings.simplefilter("ignore")  # the peers warn of float32 inputs, NumPy of the domains that steps leave
    if torch is not None:
        torch.set_num_threads(1)
    modules = {"torch": torch, "jax": jax, "autograd": autograd}
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name, m in ({"numpy": np} | modules).items() if m is not None}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"threads: torch 1, BLAS {os.environ.get('OPENBLAS_NUM_THREADS', 'as it chooses')}; {os.cpu_count()} cores")
    for name, module in modules.items():
        if module is None:
            print(f"{name} is not installed: left out")
    result = {"versions": versions} | {name: PARTS[name](args) for name in args.parts or PARTS}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
