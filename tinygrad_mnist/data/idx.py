"""The IDX format of the original MNIST files, plain or gzip'd.

A file is a big-endian header (two zero bytes, a type code, the number of dimensions, then each dimension as 32 bits)
and the items in C order. Fashion-MNIST, KMNIST and EMNIST come in the same four files.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import DataError, Part, Stream, damage, listing, open_file, read_items

# (part, kind, number of dimensions) of the four files, in the order of the arrays that a data set returns.
FILES = (("train", "images", 3), ("train", "labels", 1), ("t10k", "images", 3), ("t10k", "labels", 1))

# MNIST's own name, the dotted one of some mirrors, and EMNIST's, which has a prefix and says "test" for "t10k".
NAME = re.compile(r"(?P<prefix>.*-)?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d-ubyte(\.gz)?")

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_folder(folder: Path) -> list[Part]:
    """The four arrays of the one IDX data set in `folder`: train images and labels, test images and labels."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise DataError(folder, "a readable folder", error.strerror or error) from error
    sets: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for path in paths:
        if match := NAME.fullmatch(path.name):
            part = "train" if match["part"] == "train" else "t10k"
            sets.setdefault(match["prefix"] or "", {}).setdefault((part, match["kind"]), []).append(path)
    if not sets:
        found = listing(path.name for path in paths)
        raise DataError(folder, "IDX files such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz", found)
    if len(sets) > 1:
        found = f"several, with the prefixes {listing(sets)}: give each a folder of its own"
        raise DataError(folder, "the IDX files of one data set", found)
    [(prefix, files)] = sets.items()
    arrays = []
    for part, kind, ndim in FILES:
        candidates = files.get((part, kind))
        if candidates is None:
            expected = f"a file {prefix}{part}-{kind}-idx{ndim}-ubyte, plain or .gz"
            raise DataError(folder, expected, listing(path.name for path in paths))
        # Of several forms of one file, a plain one is the fastest to read; some archives unpack to a folder beside it.
        path = min(candidates, key=lambda path: (path.is_dir(), path.suffix == ".gz", path.name))
        arrays.append(Part(str(path), read(path, ndim)))
    return arrays


def read(path: Path, ndim: int) -> NDArray[np.uint8]:
    """The uint8 array of `ndim` dimensions in one IDX file. Compression is told by content, not by name."""
    with open_file(path) as file:
        try:
            if file.peek(2).startswith(GZIP_MAGIC):
                with gzip.GzipFile(fileobj=file) as stream:
                    return _read(stream, str(path), ndim)
            return _read(file, str(path), ndim)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(path, "an intact file", damage(error)) from error


def _read(stream: Stream, name: str, ndim: int) -> NDArray[np.uint8]:
    size = 4 + 4 * ndim
    magic = bytes((0, 0, UNSIGNED_BYTE, ndim))
    header = stream.read(size)
    if not header:
        raise DataError(name, f"an IDX header of {size} bytes", "an empty file")
    if header[:4] != magic:
        raise DataError(name, f"magic {magic.hex()} (uint8, {ndim} dimensions)", _describe(header[:4]))
    if len(header) < size:
        raise DataError(name, f"an IDX header of {size} bytes", f"only {len(header)}")
    return read_items(stream, name, struct.unpack(f">{ndim}I", header[4:]), np.dtype(np.uint8))


def _describe(magic: bytes) -> str:
    types = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
    if len(magic) == 4 and magic.startswith(b"\0\0") and magic[2] in types:
        return f"{magic.hex()} ({types[magic[2]]}, {magic[3]} dimensions)"
    return f"{magic.hex()} (not an IDX file)"
