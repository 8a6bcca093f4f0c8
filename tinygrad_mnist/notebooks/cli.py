"""The command `tinygrad-mnist notebooks`. What trains is imported when it is called."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import arrays, gpu, progress, runs, serialize
from . import MODULES, load

RESULT = "result.json"
WIDTH = 15

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True,
    help="""Train the five notebooks that this package grew out of, and compare with what they reported.

    \b
    Examples:
      tinygrad-mnist notebooks list
      tinygrad-mnist notebooks run sgd-sigmoid-mse
    """,
)


@app.command(name="list")
def list_() -> None:
    """List the notebooks: name, model, data, and what they reported.

    \b
    Example:
      tinygrad-mnist notebooks list
    """
    from rich.table import Table

    table = Table("", "name", "model", "data", "reported", box=None)
    for letter in MODULES:
        found = load(letter)
        table.add_row(letter, found.name, found.model, found.data, found.said)
    progress.print_table(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="A name or letter, as `notebooks list` shows them.", show_default=False)],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples and epochs: a first look.")] = False,
    device: Annotated[str, typer.Option(help="cpu, gpu, gpu:N, or auto: a GPU if there is one.")] = "auto",
    seed: Annotated[
        int | None,
        typer.Option(help="Decides weights and order.  [default: 0, or the notebook's own]", min=0, metavar="N",
                     show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for results.  [default: runs/<date>-<time>]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a notebook by compiled steps: what it reported, what we get, and their ratio, line by line.

    Times are taken in the same run against the notebook's own NumPy loop and, where it is installed, PyTorch. What is
    there is saved after each line, so that Ctrl-C loses nothing. Of the full runs, A, B and C take a minute or so, A',
    B' and D minutes, and E half an hour.

    \b
    Examples:
      tinygrad-mnist notebooks run A --quick
      tinygrad-mnist notebooks run adam-128-64 --seed 7 --out runs/keras
      tinygrad-mnist notebooks run E --device gpu --json
    """
    from ..bench import report
    from .loops import Line, Session

    notebook = load(name)
    chosen, reason = gpu.choose(device)
    folder = next(runs.unused(Path("runs"))) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    facts: dict[str, Any] = {
        "notebook": notebook.name,
        "letter": notebook.letter,
        "quick": quick,
        "seed": notebook.seed if seed is None else seed,
        "device": chosen,
        "emulated": gpu.emulated(chosen),
        "provenance": report.provenance(),
    }

    def save(finished: bool = False) -> dict[str, Any]:
        minutes = round((time.perf_counter() - start) / 60, 2)
        found = {**facts, "finished": finished, "minutes": minutes, **session.result()}
        serialize.write(folder / RESULT, json.dumps(found, indent=1, allow_nan=False).encode())
        return found

    def show(line: Line | str) -> None:
        if not as_json:
            print(line if isinstance(line, str) else _columns(*asdict(line).values()), flush=True)
        save()

    if not as_json:
        print(f"device: {chosen} ({reason})", file=progress.stderr(), flush=True)
        print(f"{notebook.letter}. {notebook.name}: {notebook.model}; {notebook.data}; seed {facts['seed']}")
        if quick:
            print("A quick run: fewer samples and epochs than the notebook's; its figures are not comparable.")
        print(_columns("", "reported", "ours", "ratio"))
    with progress.shown("notebooks") if not as_json else nullcontext(lambda text: None) as say:
        session = Session(quick, chosen, facts["seed"], say, show)
        with arrays.explaining("training", chosen):
            notebook.run(session)
    session.draw()
    for picture, png in session.pictures.items():
        serialize.write(folder / picture, png)
    found = save(finished=True)
    if as_json:
        print(json.dumps({"folder": str(folder), **found}, allow_nan=False))
    else:
        print(f"Results and pictures: {folder}")


def _columns(what: str, reported: str, ours: str, ratio: str, note: str = "") -> str:
    if max(len(reported), len(ours)) >= WIDTH:  # every digit of an array
        return f"{what}: {ratio} {note and f'({note})'}\n    reported  {reported}\n    ours      {ours}"
    return f"{what:58}{reported:>{WIDTH}}{ours:>{WIDTH}}{ratio:>{WIDTH}}  {note}".rstrip()
