"""The cases, a module per group of families. Importing one registers its cases in `judge.case.CASES`."""

from . import big, edges, functions, kinks, noise, precision, scales, structure, upstream, wiring

__all__ = ["big", "edges", "functions", "kinks", "noise", "precision", "scales", "structure", "upstream", "wiring"]
