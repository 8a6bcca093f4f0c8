"""What `import tinygrad_mnist` costs over `import numpy`, each in a fresh process. Bar: 60 ms.

    python benchmarks/import_time.py [--rounds 20]

The two are run by turns, so that a machine that speeds up or slows down does so for both. Exits 1 above the bar.
"""

import argparse
import statistics
import subprocess
import sys
import time

BAR_MS = 60
NUMPY = "import numpy"
BOTH = "import numpy; import tinygrad_mnist"


def milliseconds(program: str) -> float:
    """Wall time of a fresh interpreter that runs `program`, from start to exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return 1000 * (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="processes of each kind (default: 20)")
    rounds = parser.parse_args().rounds

    programs = (NUMPY, BOTH)
    for program in programs:  # not counted: writes the bytecode and warms the disk cache
        milliseconds(program)
    times = [[milliseconds(program) for program in programs] for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    cost = medians[1] - medians[0]

    for program, median in zip(programs, medians, strict=True):
        print(f"{median:8.1f} ms  {program}")
    print(f"{cost:8.1f} ms  difference (medians of {rounds}; bar {BAR_MS} ms: {'met' if cost <= BAR_MS else 'missed'})")
    return int(cost > BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
