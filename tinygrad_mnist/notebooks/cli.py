"""The command `tinygrad-mnist notebooks`. What trains is imported when it is called."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import gpu, progress, runs, serialize
from . import MODULES, load

PAGE = "notebooks.html"
WIDTH = 15

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True,
    help="""Train and audit the five notebooks that this package grew out of, beside what they reported.

    \b
    Examples:
      tinygrad-mnist notebooks list
      tinygrad-mnist notebooks run sgd-sigmoid-mse
      tinygrad-mnist notebooks audit
      tinygrad-mnist notebooks report --quick
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
    from . import results
    from .loops import Line

    notebook = load(name)
    chosen, reason = gpu.choose(device)
    folder = next(runs.unused(Path("runs"))) if out is None else out
    seed = notebook.seed if seed is None else seed

    def show(line: Line | str) -> None:
        if not as_json:
            print(line if isinstance(line, str) else _columns(*asdict(line).values()), flush=True)

    if not as_json:
        print(f"device: {chosen} ({reason})", file=progress.stderr(), flush=True)
        print(f"{notebook.letter}. {notebook.name}: {notebook.model}; {notebook.data}; seed {seed}")
        if quick:
            print(results.QUICK)
        print(_columns("", "reported", "ours", "ratio"))
    with progress.shown("notebooks") if not as_json else nullcontext(lambda text: None) as say:
        found = results.train(notebook, folder, quick=quick, device=chosen, seed=seed, say=say, show=show)
    if as_json:
        print(json.dumps({"folder": str(folder), **found}, allow_nan=False))
    else:
        print(f"Results and pictures: {folder}")


@app.command()
def audit(
    name: Annotated[str | None, typer.Argument(help="A name or letter.  [default: all]", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audits as JSON.")] = False,
) -> None:
    """Say of every gradient that was derived by hand whether it is the gradient of the loss, and if not, which line is
    wrong.

    Of A' and D also whether it is that of the cost that they report. Each at the notebook's own first weights and a few
    of its samples. Exit code 0: the audit was done. That a notebook is wrong is what it finds, and no failure.

    \b
    Examples:
      tinygrad-mnist notebooks audit
      tinygrad-mnist notebooks audit digits-relu-softmax
      tinygrad-mnist notebooks audit D --json
    """
    from ..gradcheck.report import row_and_head
    from . import audits

    chosen = [load(letter) for letter in (MODULES if name is None else [name])]
    found = {}
    for notebook in chosen:
        found[notebook.letter] = audits.audits(notebook)
        if as_json:
            continue
        if not found[notebook.letter]:
            print(f"{notebook.letter}. {notebook.name}: {audits.NOTHING}\n")
        for one in found[notebook.letter]:
            print(f"{notebook.letter}. {notebook.name}, gradient of the {one.title}: {one.report.verdict}")
            print(*row_and_head(audits.rows(one.report), audits.LEFT), *one.report.remarks, "", sep="\n")
    if as_json:
        print(json.dumps(audits.as_json(found), allow_nan=False))
    else:
        print(audits.summary_text(found))


@app.command()
def report(
    quick: Annotated[bool, typer.Option("--quick", help="Run quickly what has to be run.")] = False,
    device: Annotated[str, typer.Option(help="cpu, gpu, gpu:N, or auto: a GPU if there is one.")] = "auto",
    out: Annotated[
        Path, typer.Option(help="The folder of the report, with a folder for each notebook, by letter.")
    ] = Path("runs/notebooks"),
) -> None:
    """Write one page on all notebooks: reported and reproduced, learning curves, confusion matrices, audits, times.

    It takes the results that `notebooks run D --out FOLDER/D` left, and runs what is missing: without --quick, all of
    it takes an hour. The page needs nothing else: it can be sent, or printed.

    \b
    Examples:
      tinygrad-mnist notebooks report --quick
      tinygrad-mnist notebooks report --out runs/today
    """
    from . import audits, page, results

    chosen, _ = gpu.choose(device)
    found = {}
    with progress.shown("notebooks") as say:
        say("audits")
        audited = audits.all_audits()
        for letter in MODULES:
            found[letter] = results.read_or_run(load(letter), out / letter, quick=quick, device=chosen, say=say)
    serialize.write(out / PAGE, page.page(found, audited).encode())
    print(f"Report: {out / PAGE}")


def _columns(what: str, reported: str, ours: str, ratio: str, note: str = "") -> str:
    if max(len(reported), len(ours)) >= WIDTH:  # every digit of an array
        return f"{what}: {ratio} {note and f'({note})'}\n    reported  {reported}\n    ours      {ours}"
    return f"{what:58}{reported:>{WIDTH}}{ours:>{WIDTH}}{ratio:>{WIDTH}}  {note}".rstrip()
