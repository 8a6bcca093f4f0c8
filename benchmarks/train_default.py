"""The command `tinygrad-mnist train` as its user runs it: accuracy, wall time from process start to exit, peak memory.

    python benchmarks/train_default.py [--seeds 5]

Bars: median test accuracy 98.0 %, median wall time 6 s on two idle cores, peak memory 450 MB. Exits 1 if one is missed.
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

ACCURACY, SECONDS, MEGABYTES = 0.98, 6.0, 450


def train(seed: int, folder: Path) -> tuple[float, float, float]:
    """(test accuracy, seconds, megabytes) of one run."""
    command = [sys.executable, "-m", "tinygrad_mnist", "train", "--seed", str(seed), "--out", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    memory = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return json.loads((folder / "report.json").read_text())["accuracy"], seconds, memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs, with the seeds 0, 1, ... (default: 5)")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(parser.parse_args().seeds):
            results.append(train(seed, Path(folder) / str(seed)))
            print("seed {}: {:.2%}  {:.2f} s  {:.0f} MB".format(seed, *results[-1]), flush=True)
    accuracies, times, memory = zip(*results, strict=True)
    accuracy, seconds, megabytes = statistics.median(accuracies), statistics.median(times), max(memory)
    print(f"median accuracy {accuracy:.2%}, median time {seconds:.2f} s, largest peak {megabytes:.0f} MB")
    return int(accuracy < ACCURACY or seconds > SECONDS or megabytes > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
