"""The derived backward pass of a notebook, and beside its lines what its author derived by hand for the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..explanation import explain
from ..gradcheck import audit
from ..gradcheck.statements import Source, Statement
from . import Notebook
from .audits import NOTHING, point

HEADING = "    # ---- backward"
MARK = "  <- wrong"

Line = tuple[str, list[str]]
"""(a derived one, the hand-derived ones for the same quantity)."""


def beside(notebook: Notebook, width: int, xp: str = "numpy") -> Iterator[str]:
    """Lines of the derived program of each variant, as `explain` has them. In its backward part the hand-derived
    statements stand as comments, on the right if that fits into `width`, else below."""
    weights, samples = point(notebook)
    makers = Source(notebook.backward).makers(notebook.forward.__code__.co_varnames) if notebook.backward else {}
    for variant, options in notebook.variants.items():
        if variant:
            yield f"# {variant}"
        inputs = *weights.values(), *samples.values(), *options.values()
        text = explain(notebook.forward, *inputs, xp=xp, wrt=tuple(weights)).splitlines()
        start = next(k for k, line in enumerate(text, start=1) if line.startswith(HEADING))
        yield from text[:start]
        wrong = audit(notebook.forward, notebook.backward, *inputs).wrong if notebook.backward else []
        yield from _set([*_paired(text[start:], makers, wrong)], width)
        yield ""
    if not makers:
        yield f"# {NOTHING}"


def _paired(derived: Sequence[str], makers: Mapping[str, Statement], wrong: Sequence[str]) -> Iterator[Line]:
    shown: set[str] = set()
    for line in derived:
        code = line.partition("  #")[0].rstrip() or line
        name = code.partition(" = ")[0].strip().removeprefix("d")
        hand = [part for part in _statements(name, makers[name]) if part not in shown] if name in makers else []
        shown.update(hand)
        if name in wrong and hand:
            hand[-1] += MARK
        yield code, hand


def _statements(name: str, made: Statement) -> list[str]:
    """An expression stands after the name of what it is the gradient by."""
    text = made.text if " = " in made.text else f"{name}: {made.text}"
    return [part for part in (*made.uses.split("; "), *text.split("; ")) if part]


def _set(lines: Sequence[Line], width: int) -> Iterator[str]:
    column = max(len(code) for code, _ in lines if not code.lstrip().startswith("#"))
    parts = [part for _, hand in lines for part in hand]
    if column + max(map(len, parts), default=0) + len("  # ") > width:
        for code, hand in lines:
            yield code
            yield from (f"        # by hand: {part}" for part in hand)
        return
    for code, hand in lines:
        first, *rest = hand or [""]
        yield f"{code:{column}}  # {first}" if first else code
        yield from (f"{'':{column}}  # {part}" for part in rest)
