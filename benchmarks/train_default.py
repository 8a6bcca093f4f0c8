"""The command `tinygrad-mnist train` as its user runs it: accuracy, wall time from process start to exit, peak memory.

    python benchmarks/train_default.py [--seeds 5]

For each seed a first run ever, which finds no compiled code and no fonts of matplotlib, a second run, and one with
`--no-compile`, for comparison. Bars, on two idle cores: median test accuracy 98.0 %, median wall time 7 s for the first
and 4 s for the second, peak memory 450 MB. Exits 1 if one is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ACCURACY, MEGABYTES = 0.98, 450
SECONDS = {"first": 7.0, "cached": 4.0, "uncompiled": float("inf")}


def train(kind: str, seed: int, folder: Path) -> tuple[float, float, float, str]:
    """(test accuracy, seconds, megabytes, what ran the steps) of one run."""
    out = folder / kind
    command = [sys.executable, "-m", "tinygrad_mnist", "train", "--json", "--seed", str(seed), "--out", str(out)]
    command += ["--no-compile"] * (kind == "uncompiled")
    caches = {"TINYGRAD_MNIST_CACHE": str(folder / "code"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    with (folder / "answer").open("w+b") as answer:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.DEVNULL, env={**os.environ, **caches})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
        answer.seek(0)
        result = json.load(answer)
    memory = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return result["accuracy"], seconds, memory, result["backend"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="rounds, with the seeds 0, 1, ... (default: 5)")
    results: dict[str, list[tuple[float, float, float, str]]] = {kind: [] for kind in SECONDS}
    for seed in range(parser.parse_args().seeds):
        with tempfile.TemporaryDirectory() as folder:
            for kind, found in results.items():
                found.append(train(kind, seed, Path(folder)))
                print("seed {}, {}: {:.2%}  {:.2f} s  {:.0f} MB  {}".format(seed, kind, *found[-1]), flush=True)
    missed = False
    for kind, found in results.items():
        accuracies, times, memory, _ = zip(*found, strict=True)
        accuracy, seconds, megabytes = statistics.median(accuracies), statistics.median(times), max(memory)
        print(f"{kind}: median accuracy {accuracy:.2%}, median time {seconds:.2f} s, largest peak {megabytes:.0f} MB")
        missed |= accuracy < ACCURACY or seconds > SECONDS[kind] or megabytes > MEGABYTES
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
