"""The project's own judge of gradient checkers: cases, the verdicts that count as right, and a score. See README.md."""

from . import cases as _cases  # noqa: F401  (importing the families fills CASES)
from .case import CASES, Case, Problem
from .score import Score, score

__all__ = ["CASES", "Case", "Problem", "Score", "score"]
