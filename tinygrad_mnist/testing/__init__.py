"""What checks the operations, wherever they run: the operation table and the backends that it is run on."""

from .optable import BACKENDS, OPS, Backend, Op, draw

__all__ = ["BACKENDS", "OPS", "Backend", "Op", "draw"]
