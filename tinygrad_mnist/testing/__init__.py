"""What checks the operations, wherever they run: the operation table and the backends that it is run on."""

from .optable import OPS, Backend, DeviceBackend, Op, draw

__all__ = ["OPS", "Backend", "DeviceBackend", "Op", "draw"]
