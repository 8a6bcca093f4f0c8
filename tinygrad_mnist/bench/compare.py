"""What got slower between two reports, with uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FLOOR = "bare products"
DRAWS = 4000


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """median(b) / median(a), and the limits of its 95 % interval by bootstrap: the samples of each drawn anew."""
    rng = np.random.default_rng(0)
    first, second = (
        np.median(np.asarray(values)[rng.integers(0, len(values), (DRAWS, len(values)))], axis=1) for values in (a, b)
    )
    low, high = np.quantile(second / first, [0.025, 0.975])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def verdict(low: float, high: float) -> str:
    """What the interval of a ratio of times says."""
    return "slower" if low > 1 else "faster" if high < 1 else "no difference"


def compare(a: Mapping[str, Any], b: Mapping[str, Any], to_floor: bool = False) -> list[dict[str, Any]]:
    """A line for each tool of each row that both reports have timed at least twice.

    `to_floor`: compare not the times but how many times the bare matrix products of the same repeat they are, which
    a slower hour or another machine changes less.
    """
    rows_a = {row["key"]: row["tools"] for row in a["rows"]}
    lines = []
    for row in b["rows"]:
        for name, entry in row["tools"].items():
            old = _samples(rows_a.get(row["key"], {}), name, to_floor)
            new = _samples(row["tools"], name, to_floor)
            if len(old) > 1 and len(new) > 1:
                value, low, high = ratio(old, new)
                line = {"row": row["key"], "tool": name, "ratio": value, "low": low, "high": high}
                lines.append({**line, "verdict": verdict(low, high), "note": entry["note"]})
    return lines


def caveats(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Where the two reports were not made alike, which explains more than any change of code."""
    facts = ("cpu", "cores", "threads", "gpu", "blas", "python", "versions")
    one, other = a["provenance"], b["provenance"]
    return [f"{fact}: {one[fact]} and {other[fact]}" for fact in facts if one[fact] != other[fact]]


def _samples(tools: Mapping[str, Any], name: str, to_floor: bool) -> list[float]:
    samples: list[float] = tools[name]["samples"] if name in tools else []
    if not to_floor:
        return samples
    floor = tools[FLOOR]["samples"] if FLOOR in tools and name != FLOOR else []
    return [sample / low for sample, low in zip(samples, floor, strict=False)]
