"""What was measured, for people: tables, plots, one page; and where it was measured."""

from __future__ import annotations

import html
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from .. import gpu, webpage
from ..plots import INK, new_figure, to_png
from . import tools
from .compare import FLOOR
from .measure import CORES, THREADS, TOLERANCE

Row = Mapping[str, Any]
PACKAGES = (
    "tinygrad-mnist", "numpy", "scipy", "numba", "llvmlite", "torch", "jax", "jaxlib", "autograd", "mygrad",
    "tinygrad", *gpu.PACKAGES,
)
OURS = {"numpy eager": "#9ecae1", "numpy program": "#4292c6", "numba loop": "#08519c"}
COLOURS = {
    **OURS, FLOOR: "#000000", "cupy eager": "#74c476", "cupy program": "#006d2c", "torch eager": "#e6550d",
    "torch compile": "#fdae6b", "jax jit": "#bcbddc", "jax scan": "#756bb1", "autograd": "#b5651d",
    "mygrad": "#c51b8a", "tinygrad": "#888888",
}
HOW = f"""Each tool runs in a process of its own and waits for its turn: repeat 1 of all tools, then 2, and so on.
Times are medians over the repeats, at the better of the numbers of threads. All tools start from the
same weights and take the same rows; gathering them, and reading the loss, are counted. A tool is timed only after its
losses in float64 agree with those of this package in eager mode to {TOLERANCE:.0e}, on the same arithmetic with a
batch of at most 512. "bare products" are the matrix products of the step alone (with the gathering), into memory that
is there. Ratios carry over to other machines and hours better than times do."""

# ---- where --------------------------------------------------------------------------------------------------------


def provenance(**options: Any) -> dict[str, Any]:
    """The machine, the versions, the commit and the options of this measurement. Nothing in it is a path."""
    found = gpu.probe()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu(),
        "cores": CORES,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": load(),
        "threads": list(THREADS),
        "gpu": found.report(),
        "blas": _blas(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": platform.platform(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        **options,
    }


def load() -> list[float]:
    """How busy the machine was in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _git(*arguments: str) -> str:
    """What git says of the checkout that the package lies in; "" where it is installed from elsewhere."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _blas() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    text = f"{blas['name']} {blas['version']}"
    try:
        pools = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:  # an extra
        return text
    return ", ".join([text, *sorted({f"{pool['architecture']} kernels" for pool in pools if "architecture" in pool})])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- tables -------------------------------------------------------------------------------------------------------

HEADS = ("tool", "threads", "a step", "range", "x bare", "x best of ours", "peak MB", "float64 differs by", "note")


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    factor, unit = next((f, u) for f, u in ((1, "s"), (1e3, "ms"), (1e6, "us")) if value * f >= 0.9995 or u == "us")
    return f"{value * factor:.{3 if value * factor < 1000 else 4}g} {unit}"


def cells(row: Row) -> list[tuple[str, ...]]:
    """The tools that were timed as text, the fastest first, below the heads of the columns."""
    median = {name: statistics.median(e["samples"]) for name, e in row["tools"].items() if e["samples"]}
    ours = min((t for name, t in median.items() if row["tools"][name]["ours"]), default=None)
    floor = median.get(FLOOR)
    lines = [tuple("time" if head == "a step" and not row["work"] else head for head in HEADS)]
    for name, time in sorted(median.items(), key=lambda item: item[1]):
        entry = row["tools"][name]
        samples, differs = entry["samples"], entry.get("difference")
        moved = f"transfer {seconds(entry['transfer_seconds'])}" if "transfer_seconds" in entry else ""
        lines.append(
            (
                name, str(entry["threads"] or ""), seconds(time),
                f"{seconds(min(samples))} - {seconds(max(samples))}" if len(samples) > 1 else "",
                f"{time / floor:.2f}" if floor else "",
                f"{time / ours:.2f}" if ours else "",
                f"{entry['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in entry else "",
                f"{differs:.0e}" if differs is not None else "",
                "; ".join(filter(None, (entry["note"], moved))),
            )
        )
    used = [i for i in range(len(HEADS)) if any(line[i] for line in lines[1:])]
    return [tuple(line[i] for i in used) for line in lines]


def untimed(row: Row) -> list[str]:
    """A line for each reason why tools have no time, with their names."""
    reasons: dict[str, list[str]] = {}
    for name, entry in row["tools"].items():
        if not entry["samples"]:
            reasons.setdefault(entry["note"], []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def judged(row: Row) -> list[str]:
    """A line for each thing asked of this row."""
    lines = []
    for bar in row["bars"]:
        quantity = "peak memory" if bar["quantity"] == "memory" else "time"
        absolute = bar["against"] == "seconds"
        asked = f"at most {bar['limit']:g} s" if absolute else f"at most {bar['limit']:g} x {bar['against']}"
        if bar["value"] is None:
            lines.append(f"{quantity}, {bar['tool'] or 'best of ours'}: {asked}: not measured")
            continue
        between = f" ({bar['interval'][0]:.2f} - {bar['interval'][1]:.2f})" if bar["interval"] else ""
        value = seconds(bar["value"]) if absolute else f"{bar['value']:.3f}{between} x {bar['other']}"
        lines.append(f"{quantity}, {bar['tool']}: {value} ({asked}): {'met' if bar['met'] else 'MISSED'}")
    return lines


def table(row: Row) -> Table:
    """The row for a terminal."""
    heads, *lines = cells(row)
    below = "\n".join([*untimed(row), *judged(row)])
    found = Table(title=f"{row['key']}: {row['title']}", title_justify="left", caption=below, caption_justify="left")
    for head in heads:
        found.add_column(head, justify="left" if head in ("tool", "note") else "right", overflow="fold")
    for line in lines:
        found.add_row(*line)
    return found


def growth_cells(sweep: Row) -> list[tuple[str, ...]]:
    """A sweep as text: a line a tool, a column a size."""
    sizes = sorted({x for one in sweep["tools"].values() for x in one["x"]})
    lines = [("tool", *map(str, sizes), "exponent", "note")]
    for name, one in sweep["tools"].items():
        at = dict(zip(one["x"], one["seconds"], strict=True))
        slope = "" if one["exponent"] is None else f"{one['exponent']:.2f}"
        lines.append((name, *(seconds(at[x]) if x in at else "" for x in sizes), slope, one["note"]))
    return lines


# ---- pictures -----------------------------------------------------------------------------------------------------


def dots(row: Row) -> bytes | None:
    """Every sample of a row, and the medians, on a logarithmic axis."""
    timed = [(name, entry["samples"]) for name, entry in row["tools"].items() if entry["samples"]]
    if len(timed) < 2:
        return None
    timed.sort(key=lambda one: -statistics.median(one[1]))
    figure = new_figure(7.2, 1.3 + 0.3 * len(timed))
    axes = figure.subplots()
    for y, (name, samples) in enumerate(timed):
        colour = COLOURS.get(name, INK)
        axes.plot(samples, [y] * len(samples), "o", color=colour, alpha=0.45, markersize=6, markeredgewidth=0)
        axes.plot(statistics.median(samples), y, "|", color=colour, markersize=16, markeredgewidth=2.5)
    floor = dict(timed).get(FLOOR)
    if floor:
        axes.axvline(statistics.median(floor), color=COLOURS[FLOOR], linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yticks=range(len(timed)), yticklabels=[name for name, _ in timed], ylim=(-0.7, len(timed)))
    axes.set_xlabel("time of a step: samples, and their median" if row["work"] else "time: samples, and their median")
    _in_seconds(axes.xaxis)
    _plain(axes)
    return to_png(figure)


def curve(sweep: Row) -> bytes | None:
    """The times of a sweep over its size, both axes logarithmic; the floor as a dotted line."""
    if not any(one["x"] for one in sweep["tools"].values()):
        return None
    figure = new_figure(7.2, 5)
    axes = figure.subplots()
    for name, one in sweep["tools"].items():
        if one["x"]:
            slope = "" if one["exponent"] is None else f"  ~ n^{one['exponent']:.2f}"
            style: dict[str, Any] = {"linestyle": ":"} if name == FLOOR else {"marker": "o", "markersize": 4}
            axes.plot(one["x"], one["seconds"], color=COLOURS.get(name, INK), label=name + slope, **style)
    if sweep["crossing"]:
        axes.axvline(sweep["crossing"], color="#006d2c", linewidth=0.8)
        axes.annotate(f" GPU faster from {sweep['crossing']:.0f} on", (sweep["crossing"], 0.02),
                      xycoords=("data", "axes fraction"), color="#006d2c")
    axes.set(xscale="log", yscale="log", xlabel=sweep["unit"])
    axes.set_ylabel("time of a step")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _in_seconds(axes.yaxis)
    _plain(axes)
    axes.legend(frameon=False, fontsize=9)
    return to_png(figure)


def _in_seconds(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: seconds(value))
    axis.set_minor_formatter(NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# ---- files --------------------------------------------------------------------------------------------------------


def save(report: Mapping[str, Any], folder: Path) -> None:
    """bench.json, bench.html, bench.md and a PNG for each row and sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    pictures: dict[str, bytes] = {}
    for key, draw, of in (
        *((f"row-{row['key']}", dots, row) for row in report["rows"]),
        *((f"growth-{key}", curve, sweep) for key, sweep in (report["growth"] or {}).items()),
    ):
        if picture := draw(of):
            pictures[key] = picture
            (folder / f"{key}.png").write_bytes(picture)
    (folder / "bench.html").write_text(page(report, pictures), encoding="utf-8")
    (folder / "bench.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables, for `benchmarks/RESULTS.md`."""
    where = report["provenance"]
    machine = f"{where['cpu']}, {where['cores']} cores, {where['blas']}, commit {where['commit'][:10] or 'unknown'}"
    parts = [f"Measured {where['date']}: {machine}; GPU: {where['gpu']['message']}; load {_shown(where['load'])}."]
    tables = [(f"## {row['key']}: {row['title']}", cells(row), [*untimed(row), *judged(row)]) for row in report["rows"]]
    tables += [(f"## {sweep['title']}", growth_cells(sweep), []) for sweep in (report["growth"] or {}).values()]
    for title, (heads, *lines), below in tables:
        rows = [heads, ["---"] * len(heads), *lines]
        parts += [title, "\n".join(f"| {' | '.join(row)} |" for row in rows), "\n".join(f"- {line}" for line in below)]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One page that needs nothing else."""
    text = html.escape
    where = report["provenance"]
    parts = [f"<h1>tinygrad-mnist bench</h1><p>{text(where['date'])}: {text(where['cpu'])}, {where['cores']} cores; "
             f"GPU: {text(where['gpu']['message'])}</p><p>{text(HOW)}</p>"]
    for row in report["rows"]:
        parts.append(f"<h2>{text(row['key'])}</h2><p>{text(row['title'])}</p>")
        for line in judged(row):
            kind = "missed" if line.endswith("MISSED") else "met" if line.endswith("met") else ""
            parts.append(f'<div class="{kind}">{text(line)}</div>')
        parts.append(webpage.table(cells(row)))
        parts += [f"<div>{text(line)}</div>" for line in untimed(row)]
        parts.append(webpage.image(pictures.get(f"row-{row['key']}"), row["title"]))
    for key, sweep in (report["growth"] or {}).items():
        crossing = sweep["crossing"]
        gpu_line = f"A GPU overtakes the CPU from {crossing:.0f} on." if crossing else tools.NO_GPU
        parts.append(f"<h2>{text(sweep['title'])}</h2><p>{text(sweep['unit'])}, exponents over the larger half of the "
                     f"sizes. {text(gpu_line)}</p>")
        parts += [webpage.image(pictures.get(f"growth-{key}"), sweep["title"]), webpage.table(growth_cells(sweep))]
    facts = [("fact", "value"), *((name, _shown(value)) for name, value in where.items())]
    parts.append(f"<h2>Where and how</h2>{webpage.table(facts)}<p>All samples are in bench.json.</p>")
    return webpage.document("tinygrad-mnist bench", parts)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items() if one not in (None, "", []))
    return ", ".join(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)
