"""The command `tinygrad-mnist bench`. What it measures with is imported when it is called."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import progress

ROWS = ("adam128", "sgd1", "sgd64", "gd60000", "notebook-a", "notebook-a64", "infer", "train", "capture")
QUICK = {"repeats": 3, "budget": 0.2}
BUDGET = 1.0
"""Seconds that a sample may take."""


class _RunByDefault(TyperGroup):
    """`bench` and `bench --quick` are `bench run` and `bench run --quick`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault, add_completion=False, rich_markup_mode=None,
    help="""Measure this package, its peers and the bare matrix products in turns, on this machine.

    \b
    Examples:
      tinygrad-mnist bench --rows adam128,sgd1 --out results
      tinygrad-mnist bench compare before/bench.json after/bench.json
    """,
)


@app.command()
def run(
    rows: Annotated[str, typer.Option(help=f"Of {', '.join(ROWS)}.", show_default="all")] = ",".join(ROWS),
    only: Annotated[
        str | None, typer.Option("--tools", help="Names of tools, such as 'numba loop,jax scan'.  [default: all]")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Samples of each tool.", min=1, metavar="N")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="3 short samples, and no tool that takes long to start: a first look.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Also the time over batch, width, depth and size of the graph (minutes).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for bench.json, .html, .md and pictures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time the rows (all of them: half an hour), each tool after a check that it computes the same.

    Peers are those of `pip install 'tinygrad-mnist[bench]'`; what is not installed is a row that says so. Close what
    else keeps the cores busy.

    \b
    Examples:
      tinygrad-mnist bench --quick --rows adam128
      tinygrad-mnist bench run --rows sgd1,adam128 --tools "numba loop,jax scan,bare products"
      tinygrad-mnist bench --growth --out bench-today
    """
    from . import growth as sweeps
    from . import measure, report, tools
    from .works import WORKS

    keys = _chosen(rows, ROWS, "--rows")
    default = [name for name, tool in tools.TOOLS.items() if not (quick and tool.slow_start)]
    names = _chosen(only, tuple(tools.TOOLS), "--tools") if only else default
    if quick:
        repeats = min(repeats, int(QUICK["repeats"]))
    budget = QUICK["budget"] if quick else BUDGET
    start = time.perf_counter()
    provenance = report.provenance(options={"rows": keys, "tools": names, "repeats": repeats, "sample_seconds": budget})
    found: dict[str, Any] = {"provenance": provenance, "rows": [], "growth": None}
    if provenance["load"][0] > 0.5:
        busy = f"the machine is busy (load {provenance['load'][0]}): times will be too long, and ratios uncertain"
        print(f"bench: {busy}", file=progress.stderr(), flush=True)
    with progress.shown("bench") as say:
        for key in keys:
            if key in WORKS:
                row = measure.measure(WORKS[key], names, repeats, budget, say)
            else:
                row = (measure.measure_train if key == "train" else measure.measure_capture)(repeats, say)
            found["rows"].append(row)
            if not as_json:
                progress.print_table(report.table(row))
            if out:  # what there is, in case that the rest is interrupted
                report.save(found, out)
        if growth:
            of = [name for name in sweeps.TOOLS if name in names]
            found["growth"] = sweeps.measure(of, budget / 10, say)
    provenance["load_after"] = report.load()
    provenance["minutes"] = round((time.perf_counter() - start) / 60, 1)
    if out:
        report.save(found, out)
        print(f"Report: {out / 'bench.html'}", file=progress.stderr())
    if as_json:
        print(json.dumps(found, allow_nan=False))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="bench.json of the run before.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="bench.json of the run after.", show_default=False)],
    to_floor: Annotated[
        bool, typer.Option("--to-floor", help="Compare times over those of the bare products in the same repeat.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what got slower from A to B: ratios of medians with 95 % intervals.

    One line in forty is called slower by chance alone: repeat the measurement before you believe a single one.

    \b
    Example:
      tinygrad-mnist bench compare before/bench.json after/bench.json --to-floor
    """
    from . import compare as comparing

    one, other = (json.loads(path.read_text(encoding="utf-8")) for path in (a, b))
    for path, content in ((a, one), (b, other)):
        if not isinstance(content, dict) or not {"rows", "provenance"} <= content.keys():
            raise ValueError(f"{path} is no bench.json of tinygrad-mnist bench --out")
    lines = comparing.compare(one, other, to_floor)
    caveats = comparing.caveats(one, other)
    if as_json:
        print(json.dumps({"to_floor": to_floor, "caveats": caveats, "lines": lines}, allow_nan=False))
        return
    for caveat in caveats:
        print(f"not measured alike: {caveat}")
    print(f"{'row':14}{'tool':24}{'B / A':>7}  95 % interval")
    for line in lines:
        print("{row:14}{tool:24}{ratio:7.3f}  {low:.3f} - {high:.3f}  {verdict}".format(**line))
    if not lines:
        print("nothing that both have timed twice" + (" beside the bare products" if to_floor else ""))


def _chosen(text: str, known: tuple[str, ...], option: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
    return chosen
