"""The five notebooks on one page of HTML: what they reported, what we get, what they derived by hand, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from html import escape

from .. import webpage
from . import Notebook, load
from .audits import LEFT, NOTHING, Audit, Row, rows, summary
from .results import QUICK, Result

HOW = """What each notebook reported, and what its training gives here, by compiled steps. A ratio is ours over theirs;
with an x, it says how many times faster ours is."""
AUDITED = """Is what was derived by hand the gradient of the loss that the notebook descends, and of the cost that it
reports, where that is another? "right" counts parameters, "error" is the largest relative error of the others, "cosine"
the smallest between derived by hand and true, and "wrong at" names the quantities whose own lines are wrong."""


def page(results: Mapping[str, Result], audited: Mapping[str, Sequence[Audit]]) -> str:
    """One page that needs nothing else."""
    parts = ["<h1>Five notebooks</h1>", f"<p>{escape(HOW)}</p>", "<h2>What was derived by hand</h2>"]
    parts += [f"<p>{escape(AUDITED)}</p>", _table(summary(audited))]
    for letter, result in results.items():
        parts += _section(load(letter), result, audited[letter])
    return webpage.document("The notebooks of tinygrad-mnist", parts)


def _section(notebook: Notebook, result: Result, audited: Sequence[Audit]) -> list[str]:
    parts = [f"<h2>{escape(notebook.letter)}. {escape(notebook.name)}</h2>"]
    parts.append(f"<p>{escape(notebook.model)}; {escape(notebook.data)}. It reported: {escape(notebook.said)}.</p>")
    parts.append(f"<p>{escape(result.where)}</p>")
    if result.quick:
        parts.append(f'<p class="missed">{escape(QUICK)}</p>')
    heads = "", "reported", "ours", "ratio", "note"
    parts.append(webpage.table([heads, *map(astuple, result.lines)], left=["note"]))
    parts += _lines(result.remarks)
    parts.append("<h3>Derived by hand</h3>")
    for one in audited:
        parts.append(f"<h4>Gradient of the {escape(one.title)}: {escape(one.report.verdict)}</h4>")
        parts += [_table(rows(one.report)), *_lines(one.report.remarks)]
    parts += _lines([] if audited else [NOTHING])
    return [*parts, _figures(result.pictures)]


def _table(made: Sequence[Row]) -> str:
    return webpage.table([tuple(made[0]), *(tuple(row.values()) for row in made)], LEFT)


def _lines(lines: Sequence[str]) -> list[str]:
    return [f'<p class="line">{escape(line)}</p>' for line in lines]


def _figures(pictures: Mapping[str, bytes]) -> str:
    """What is wide one below the other, then the rest side by side."""
    parts = []
    for small, name in sorted((not name.startswith(("curves", "predictions")), name) for name in pictures):
        words = name.removesuffix(".png").replace("-", " ")
        kind = "" if small else ' class="row"'
        caption = f"<figcaption>{escape(words)}</figcaption>"
        parts.append(f"<figure{kind}>{webpage.image(pictures[name], words)}{caption}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>'
