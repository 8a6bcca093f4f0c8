"""What the notebooks derived by hand, audited: is it the gradient of their loss, and of the cost that they report?"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..gradcheck import AuditReport, audit
from ..gradcheck.report import row_and_head
from . import MODULES, Notebook, load
from .loops import Weights

LOSS, REPORTED = "loss", "reported cost"
NOTHING = "Nothing in it is derived by hand: Keras derives it."


class Audit(NamedTuple):
    """Of a variant of a notebook: are these the gradients of this cost?"""

    cost: str
    variant: str
    report: AuditReport

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.cost, self.variant)))


def point(notebook: Notebook) -> tuple[Weights, dict[str, Any]]:
    """What its functions are looked at with, by name: the weights that it begins with, and a few of its samples."""
    rng = np.random.RandomState(notebook.seed)
    weights = notebook.initial(rng)
    samples = [a.T if notebook.columns else a for a in notebook.samples(rng)]
    names = list(inspect.signature(notebook.forward).parameters)[len(weights) :]
    return weights, dict(zip(names, samples, strict=False))


def audits(notebook: Notebook) -> list[Audit]:
    """Of each variant, beside the loss and beside the cost that it reports, where that is another."""
    if notebook.backward is None:
        return []
    weights, samples = point(notebook)
    found = []
    for variant, options in notebook.variants.items():
        rest = *samples.values(), *options.values()
        tested_on = notebook.tested_on(weights, *rest) if notebook.tested_on else {}
        inputs = *weights.values(), *rest
        found.append(Audit(LOSS, variant, audit(notebook.forward, notebook.backward, *inputs, tested_on=tested_on)))
        if notebook.reported_cost:
            found.append(Audit(REPORTED, variant, audit(notebook.reported_cost, notebook.backward, *inputs)))
    return found


def all_audits() -> dict[str, list[Audit]]:
    """Those of every notebook, by letter."""
    return {letter: audits(load(letter)) for letter in MODULES}


# ---- tables -------------------------------------------------------------------------------------------------------

Row = dict[str, str]
LEFT = "", "gradient by", "verdict", "notebook", "gradient of", "wrong at"
"""Columns of words."""


def rows(report: AuditReport) -> list[Row]:
    """A row for each parameter."""
    columns = "gradient by", "verdict", "error", "cosine", "factor"
    return [{name: claim.row[name] for name in columns} for claim in report.claims if claim.kind == "parameter"]


def summary(found: Mapping[str, Sequence[Audit]]) -> list[Row]:
    """A row for each audit: how many parameters have the right gradient, how far off the others are at most, and the
    quantities whose own lines are wrong."""
    made = []
    for letter, of_notebook in found.items():
        head = {"": letter, "notebook": load(letter).name}
        if not of_notebook:
            rest = dict.fromkeys(("right", "error", "cosine", "wrong at"), "-")
            made.append({**head, "gradient of": "nothing by hand", **rest})
        for one in of_notebook:
            claims = [claim for claim in one.report.claims if claim.kind == "parameter"]
            off = [claim for claim in claims if not claim.ok]
            made.append({
                **head, "gradient of": one.title, "right": f"{len(claims) - len(off)} of {len(claims)}",
                "error": f"{max(claim.error for claim in off):.2g}" if off else "-",
                "cosine": f"{min(claim.cosine for claim in off):.4f}" if off else "-",
                "wrong at": ", ".join(one.report.wrong) or "-",
            })  # fmt: skip
    return made


def summary_text(found: Mapping[str, Sequence[Audit]]) -> str:
    """For a terminal."""
    return "\n".join(row_and_head(summary(found), LEFT))


def as_json(found: Mapping[str, Sequence[Audit]]) -> list[dict[str, Any]]:
    """An object for each audit: letter, cost, variant, and the report; and for each notebook without any, its letter
    and why."""
    made: list[dict[str, Any]] = []
    for letter, of_notebook in found.items():
        made += [
            {"letter": letter, "cost": one.cost, "variant": one.variant, **json.loads(one.report.to_json())}
            for one in of_notebook
        ] or [{"letter": letter, "note": NOTHING}]
    return made
