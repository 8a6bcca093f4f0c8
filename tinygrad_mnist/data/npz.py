"""The `.npz` form in which Keras ships data sets: arrays x_train, y_train, x_test, y_test. Nothing is unpickled.

`np.load` allocates what a header claims before it looks for the bytes; this reader does not.
"""

from __future__ import annotations

import io
import warnings
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .files import DataError, Part, damage, dims, listing, read_items

if TYPE_CHECKING:
    import zipfile

# (key, number of dimensions), in the order of the arrays that a data set returns.
KEYS = (("x_train", 3), ("y_train", 1), ("x_test", 3), ("y_test", 1))


def read(file: IO[bytes], path: Path) -> list[Part]:
    """The four arrays in an open `.npz`; `path` is for the errors."""
    import zipfile  # 12 ms, which `import tinygrad_mnist.data` should not pay

    # What zipfile raises for a damaged archive besides its own error: for unknown versions and methods, for encryption,
    # for offsets beyond the file, for names that are not UTF-8, and what zlib and the file itself raise.
    failures = (
        zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, ValueError, EOFError, OSError, zlib.error
    )
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            parts = []
            for key, ndim in KEYS:
                if f"{key}.npy" not in members:
                    raise DataError(path, f"an array {key}", listing(name.removesuffix(".npy") for name in members))
                info = members[f"{key}.npy"]
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    # bzip2 and lzma set aside whatever memory their own headers ask for
                    raise DataError(path, f"{key} stored or deflated", f"zip method {info.compress_type}")
                name = f"{path}[{key}]"
                parts.append(Part(name, _read_member(archive, info, name, ndim)))
            return parts
    except DataError:
        raise
    except failures as error:
        raise DataError(path, "an intact .npz file", damage(error)) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, ndim: int) -> NDArray[Any]:
    with archive.open(info) as member:
        shape, fortran_order, dtype = _read_header(member, name)
        if len(shape) != ndim:
            raise DataError(name, f"{ndim} dimension{'s' if ndim > 1 else ''}", f"{len(shape)} ({dims(shape)})")
        if ndim == 3 and dtype != np.uint8:
            raise DataError(name, "uint8 images", dtype)
        if ndim == 1 and dtype.kind not in "iu":
            raise DataError(name, "integer labels", dtype)
        return read_items(member, name, shape, dtype, "F" if fortran_order else "C")


def _read_header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    magic = member.read(npy.MAGIC_LEN)
    if magic != npy.magic(1, 0):  # other versions are for headers of 64 KiB and more
        raise DataError(name, f"a .npy header of version 1.0 ({npy.magic(1, 0)!r})", repr(magic))
    length = member.read(2)
    header = member.read(int.from_bytes(length, "little"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote, and reads them
            return npy.read_array_header_1_0(io.BytesIO(length + header))
    except Exception as error:  # the header is parsed as a Python literal, so a damaged one can raise almost anything
        raise DataError(name, "a .npy header that gives type and shape", repr(header[:80])) from error
