"""What a run of a notebook leaves in its folder, and how it is read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import arrays, gpu, serialize
from ..bench import report
from . import Notebook
from .loops import Line, Session, picture

RESULT = "result.json"
QUICK = "A quick run: fewer samples and epochs than the notebook's; its figures are not comparable."


def train(
    notebook: Notebook, folder: Path, *, quick: bool, device: str, seed: int,
    say: Callable[[str], None] = lambda text: None, show: Callable[[Line | str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run a notebook, and save what there is after each line, so that Ctrl-C loses nothing. The result as JSON can hold
    it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    facts: dict[str, Any] = {
        "notebook": notebook.name,
        "letter": notebook.letter,
        "quick": quick,
        "seed": seed,
        "device": device,
        "emulated": gpu.emulated(device),
        "provenance": report.provenance(),
    }

    def save(finished: bool = False) -> dict[str, Any]:
        minutes = round((time.perf_counter() - start) / 60, 2)
        found = {**facts, "finished": finished, "minutes": minutes, **session.result()}
        serialize.write(folder / RESULT, json.dumps(found, indent=1, allow_nan=False).encode())
        return found

    def shown(line: Line | str) -> None:
        show(line)
        save()

    session = Session(quick, device, seed, say, shown)
    with arrays.explaining("training", device):
        notebook.run(session)
    session.draw()
    for name, png in session.pictures.items():
        serialize.write(folder / name, png)
    return save(finished=True)


@dataclass(frozen=True)
class Result:
    """A finished run."""

    quick: bool
    where: str  # and when
    lines: list[Line]
    remarks: list[str]
    pictures: dict[str, bytes]


def read(notebook: Notebook, folder: Path) -> Result | None:
    """What a run left, if it is there, finished and whole."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        names = [field.name for field in fields(Line)]
        drawn = {picture("curves", title) for title in found["history"]}
        drawn |= {picture("confusion", title) for title in found["tests"]}
        there = {path.name for path in folder.glob("*.png")}
        stale = {name for name in there - drawn if name.startswith(("curves", "confusion"))}  # of a run before it
        result = Result(
            quick=bool(found["quick"]),
            where=f"{found['provenance']['date'][:10]}, {found['provenance']['cpu']}, device {found['device']}"
            f"{' (emulated)' * found['emulated']}, seed {found['seed']}, {found['minutes']} minutes",
            lines=[Line(*(str(line[name]) for name in names)) for line in found["lines"]],
            remarks=[str(remark) for remark in found["remarks"]],
            pictures={name: (folder / name).read_bytes() for name in there - stale},
        )
        whole = found["finished"] and found["letter"] == notebook.letter and drawn <= there
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return result if whole else None


def read_or_run(notebook: Notebook, folder: Path, *, quick: bool, device: str, say: Callable[[str], None]) -> Result:
    """What a run left, or where there is nothing to use, what a run leaves now."""
    if (result := read(notebook, folder)) is None:
        train(notebook, folder, quick=quick, device=device, seed=notebook.seed, say=say)
        result = read(notebook, folder)
    assert result is not None
    return result
