"""What a run of a notebook leaves in its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import arrays, gpu, serialize
from ..bench import report
from . import Notebook
from .loops import Line, Session

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
