"""Damaged data files: whatever the damage, a DataError or a well-formed set, and memory in proportion to the file."""

import gzip
import random
import tracemalloc

import numpy as np
import pytest
from test_data import IDX_NAMES, idx_bytes, npy_bytes, small_set, write_idx, write_members, write_npz

from tinygrad_mnist.data import DataError, load

CASES = 600  # of each of the five kinds, times `effort`
LIMIT = 4 << 20  # bytes at the peak; the base files have less than 2 KiB, and damaged headers claim up to 2^96


def flip_bits(draw, content):
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def truncate(draw, content):
    del content[draw.randrange(len(content)) :]


def insert(draw, content):
    at = draw.randrange(len(content) + 1)
    content[at:at] = draw.randbytes(draw.choice((1, 2, 8, 3000)))


def delete(draw, content):
    at = draw.randrange(len(content))
    del content[at : at + draw.randint(1, 16)]


def repeat(draw, content):
    at = draw.randrange(len(content))
    content[at:at] = content[at : at + draw.randint(1, 200)]


def extreme_integer(draw, content):
    """Where formats keep lengths, offsets, counts and dimensions: mostly near the beginning and the end."""
    width = draw.choice((1, 2, 4, 8))
    at = draw.choice((draw.randrange(24), draw.randrange(len(content)), max(0, len(content) - draw.randint(1, 120))))
    content[at : at + width] = draw.choice((b"\0", b"\x01", b"\x7f", b"\x80", b"\xff")) * width


def scramble_text(draw, content):
    """In the first bytes, where a .npy keeps a Python literal."""
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(8, 100) % len(content)] = draw.choice(b"()[]{}'\",:-+*.\\0179LTFOabcefju|<>#\n ")


MUTATIONS = (flip_bits, truncate, insert, delete, repeat, extreme_integer, scramble_text)


def mutated(draw, content):
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2))):
        if changed:
            draw.choice(MUTATIONS)(draw, changed)
    return bytes(changed)


def damaged_idx(draw, folder):
    write_idx(folder)
    i = draw.randrange(4)
    (folder / IDX_NAMES[i]).write_bytes(mutated(draw, idx_bytes(small_set()[i])))
    return folder


def damaged_gz(draw, folder):
    write_idx(folder, name=lambda name: name + ".gz")
    i = draw.randrange(4)
    (folder / f"{IDX_NAMES[i]}.gz").write_bytes(mutated(draw, gzip.compress(idx_bytes(small_set()[i]))))
    return folder


def damaged_inside_gz(draw, folder):
    """With a checksum that fits the damage."""
    write_idx(folder, name=lambda name: name + ".gz")
    i = draw.randrange(4)
    (folder / f"{IDX_NAMES[i]}.gz").write_bytes(gzip.compress(mutated(draw, idx_bytes(small_set()[i]))))
    return folder


def damaged_npz(draw, folder):
    path = write_npz(folder / "set.npz")
    path.write_bytes(mutated(draw, path.read_bytes()))
    return path


def damaged_inside_npz(draw, folder):
    return write_members(folder / "set.npz", mutated(draw, npy_bytes(small_set()[0])))


@pytest.mark.parametrize("damaged", [damaged_idx, damaged_gz, damaged_inside_gz, damaged_npz, damaged_inside_npz])
def test_nothing_but_a_data_error_escapes(damaged, tmp_path, effort):
    outcomes = {"loaded": 0, "refused": 0}
    tracemalloc.start()
    try:
        for case in range(CASES * effort):
            path = damaged(random.Random(case), tmp_path)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                check_set(load(path))
                outcomes["loaded"] += 1
            except DataError as error:
                check_message(str(error), path)
                outcomes["refused"] += 1
            except BaseException as error:
                error.add_note(f"in case {case}")
                raise
            assert tracemalloc.get_traced_memory()[1] - before < LIMIT, f"in case {case}"
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > 0, outcomes


def check_set(arrays):
    """What loads although it was damaged (in a pixel, say) is a set like any other."""
    assert [array.dtype for array in arrays] == [np.uint8] * 4
    assert [array.ndim for array in arrays] == [3, 1, 3, 1]
    x_train, y_train, x_test, y_test = arrays
    assert len(x_train) == len(y_train) > 0
    assert len(x_test) == len(y_test) > 0
    assert x_train.shape[1:] == x_test.shape[1:]


def check_message(message, path):
    assert message.startswith(str(path))
    assert ": expected " in message
    assert ", found " in message
    assert message.isprintable()
