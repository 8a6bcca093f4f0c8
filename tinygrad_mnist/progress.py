"""What is shown of a training, on stderr: a progress bar, or only a line for each epoch where there is no terminal. And
how other commands show what they do, and their tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from .runs import Row
from .train import Monitor, Score, Training

REFRESH = 0.1
"""Seconds between two pictures of the bar."""


class _Stderr:
    """stderr, where what cannot be written is lost: a closed pipe or a full disk there is no reason to stop."""

    def __init__(self) -> None:
        self.stream = sys.stderr  # now: while the bar is shown, rich puts a stream of its own there
        self.encoding = getattr(self.stream, "encoding", "utf-8")

    def write(self, text: str) -> int:
        if self.stream is not None:  # as it is where the process was started without one
            with suppress(OSError):
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            with suppress(OSError):
                self.stream.flush()

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()


def stderr() -> IO[str]:
    """stderr for `print` and rich: writing to it raises no OSError."""
    return cast(IO[str], _Stderr())


def monitor(brief: bool = False) -> Lines:
    """The one that suits stderr. `brief`: it does not say what runs the steps."""
    return Bar(brief) if stderr().isatty() else Lines(brief)


class Lines(Monitor):
    """A line after each epoch, and before them one that says what runs the steps, which is also in `backend`."""

    def __init__(self, brief: bool = False) -> None:
        self.brief = brief
        self.backend: str | None = None

    def start(self, training: Training) -> None:
        self.epochs = training.recipe.epochs

    def runs(self, backend: str, reason: str) -> None:
        self.backend = backend
        if not self.brief:
            self.show(f"steps: {backend} ({reason})")

    def epoch(self, row: Row) -> None:
        result = f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}"
        parts = [f"epoch {row['epoch']}/{self.epochs}: {result}"]
        for name in ("validation", "test"):
            if f"{name}_loss" in row:
                parts.append(f"{name} {row[f'{name}_loss']:.4f}, {row[f'{name}_accuracy']:.2%}")
        rate = row["images_per_second"]
        self.show("; ".join([*parts, "emulated, no rate" if rate is None else f"{rate:.0f} images/s"]))

    def show(self, line: str) -> None:
        """Show one line."""
        print(line, file=stderr(), flush=True)


class Bar(Lines):
    """The lines, and below them a bar with loss and accuracy of the running epoch, images/s and the time left."""

    def start(self, training: Training) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().start(training)
        self.done = len(training.history)
        self.emulated = training.emulated
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=Console(file=stderr(), highlight=False),
            auto_refresh=False,  # its thread would compete with the training
            transient=True,
        )
        images = len(training.train_set.images)
        self.task = self.progress.add_task("", total=self.epochs * images, completed=self.done * images)
        self.pending = 0
        self.since = time.perf_counter()
        self.progress.start()

    def batch(self, images: int, score: Score) -> None:
        self.pending += images
        now = time.perf_counter()
        if now - self.since >= REFRESH:
            loss, accuracy = score.read()
            text = f"epoch {self.done + 1}/{self.epochs}: loss {loss:.4f}, accuracy {accuracy:.2%}"
            if not self.emulated:
                text += f"; {self.pending / (now - self.since):.0f} images/s"
            self.progress.update(self.task, advance=self.pending, description=text, refresh=True)
            self.pending, self.since = 0, now

    def epoch(self, row: Row) -> None:
        super().epoch(row)
        self.done += 1

    def show(self, line: str) -> None:
        self.progress.console.print(line, soft_wrap=True)

    def stop(self) -> None:
        self.progress.stop()


@contextmanager
def shown(command: str) -> Iterator[Callable[[str], None]]:
    """A function that shows, on stderr, what a command is doing: one line that changes, or a line each."""
    if not stderr().isatty():
        yield lambda text: print(f"{command}: {text}", file=stderr(), flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(file=stderr(), highlight=False)
    # No thread that refreshes: it would compete with what is measured
    with Progress(TimeElapsedColumn(), TextColumn("{task.description}", markup=False), console=console,
                  auto_refresh=False, transient=True) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text, refresh=True)


def print_table(table: Any) -> None:
    """Print one of rich's tables on stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # there is no edge to keep to
        console.width = 160
    console.print(table)
