"""The embedded MNIST, the readers and their errors, batches, and preprocessing."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinygrad_mnist import data
from tinygrad_mnist.data import DataError, Preprocess, batches, load, mnist

KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def small_set(seed=0, n_train=7, n_test=3, h=5, w=4):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n_train + n_test, h, w), np.uint8)
    y = rng.integers(0, 10, n_train + n_test, np.uint8)
    return x[:n_train], y[:n_train], x[n_train:], y[n_train:]


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, arrays=None, name=lambda name: name):
    folder.mkdir(exist_ok=True)
    for plain, array in zip(IDX_NAMES, small_set() if arrays is None else arrays, strict=True):
        path = folder / name(plain)
        content = idx_bytes(array)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return folder


def write_npz(path, **changes):
    np.savez(path, **(dict(zip(KEYS, small_set(), strict=True)) | changes))
    return path


def npy_header(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def npy_bytes(array):
    return npy_header(array.shape) + array.tobytes()


def write_members(path, x_train, method=zipfile.ZIP_DEFLATED):
    """Write an intact archive of the small set, with the bytes `x_train` for its member x_train.npy."""
    contents = [x_train, *map(npy_bytes, small_set()[1:])]
    with zipfile.ZipFile(path, "w", method) as archive:
        for key, content in zip(KEYS, contents, strict=True):
            archive.writestr(f"{key}.npy", content)
    return path


def same(found, expected):
    return all(a.dtype == np.uint8 and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def error_of(path):
    """The message of the DataError that loading `path` raises: one line that names the file."""
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).removeprefix(os.sep)


class TestMnist:
    def test_is_byte_for_byte_the_published_one(self):
        published = (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        )
        arrays = mnist()
        assert [array.shape for array in arrays] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
        assert tuple(hashlib.sha256(idx_bytes(array)).hexdigest() for array in arrays) == published
        assert np.bincount(arrays[1]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]

    def test_arrays_are_the_callers_own(self):
        first = mnist()
        for array in first:
            array[:] = 0
        assert all(array.any() for array in mnist())

    def test_opens_no_socket_and_unpickles_nothing(self, monkeypatch):
        def forbidden(*args, **kwargs):
            raise AssertionError("not for loading data")

        monkeypatch.setattr(socket, "socket", forbidden)
        monkeypatch.setattr(pickle, "load", forbidden)
        monkeypatch.setattr(pickle, "loads", forbidden)
        mnist()

    def test_a_changed_file_is_refused(self, tmp_path, monkeypatch):
        content = bytearray((Path(data.__file__).parent / "mnist.npz").read_bytes())
        content[5_000_000] ^= 1
        (tmp_path / "mnist.npz").write_bytes(content)
        monkeypatch.setattr(data, "__file__", str(tmp_path / "__init__.py"))
        found = hashlib.sha256(content).hexdigest()
        with pytest.raises(DataError) as caught:
            mnist()
        assert str(caught.value) == (
            f"{tmp_path / 'mnist.npz'}: expected sha256 {data.MNIST_SHA256}, found {found}: install the package again"
        )

    def test_a_missing_file_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(data, "__file__", str(tmp_path / "__init__.py"))
        with pytest.raises(DataError, match=r"mnist\.npz: expected a readable file, found No such file"):
            mnist()

    def test_is_made_reproducibly(self, tmp_path):
        """The script writes the same bytes at another time, and what it writes loads."""
        script = Path(__file__).parent.parent / "tools" / "make_mnist.py"
        folder = write_idx(tmp_path / "idx")
        outputs = [tmp_path / "a.npz", tmp_path / "b.npz"]
        for output in outputs:
            command = [sys.executable, str(script), str(folder), "--output", str(output)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            assert printed.split()[0] == hashlib.sha256(output.read_bytes()).hexdigest()
        assert outputs[0].read_bytes() == outputs[1].read_bytes()
        with zipfile.ZipFile(outputs[0]) as archive:
            assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert same(load(outputs[0]), small_set())


def test_import_needs_numpy_and_the_standard_library_alone():
    code = (
        "import sys, numpy; before = set(sys.modules); import tinygrad_mnist.data;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    root = Path(__file__).parent.parent
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout
    assert set(printed.split()) <= {"numpy", "tinygrad_mnist"}


class TestIdxFolder:
    @pytest.mark.parametrize(
        "name",
        [
            lambda name: name,
            lambda name: name + ".gz",
            lambda name: name.replace("-idx", ".idx"),
            lambda name: name.replace("-idx", ".idx") + ".gz",
            lambda name: "emnist-digits-" + name.replace("t10k", "test") + ".gz",
        ],
        ids=["plain", "gz", "dotted", "dotted gz", "emnist gz"],
    )
    def test_names(self, tmp_path, name):
        folder = write_idx(tmp_path / "set", name=name)
        (folder / "README.txt").write_text("not data")
        assert same(load(folder), small_set())
        assert same(load(str(folder)), small_set())

    def test_plain_and_gz_may_be_mixed(self, tmp_path):
        folder = write_idx(tmp_path, name=lambda name: name + ".gz" if "train" in name else name)
        assert same(load(folder), small_set())

    def test_plain_is_preferred_to_gz(self, tmp_path):
        write_idx(tmp_path, small_set(seed=1), name=lambda name: name + ".gz")
        assert same(load(write_idx(tmp_path)), small_set())

    def test_a_folder_of_the_same_name_is_passed_over(self, tmp_path):
        write_idx(tmp_path, name=lambda name: name.replace("-idx", ".idx"))
        (tmp_path / IDX_NAMES[0]).mkdir()
        assert same(load(tmp_path), small_set())

    def test_gz_is_told_by_content(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / IDX_NAMES[0]).write_bytes(gzip.compress(idx_bytes(small_set()[0])))
        (tmp_path / IDX_NAMES[1]).rename(tmp_path / (IDX_NAMES[1] + ".gz"))
        assert same(load(tmp_path), small_set())

    def test_arrays_are_writable(self, tmp_path):
        for array in load(write_idx(tmp_path)):
            array[0] = 0

    def test_a_missing_file(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / IDX_NAMES[1]).unlink()
        assert error_of(tmp_path) == (
            ": expected a file train-labels-idx1-ubyte, plain or .gz, found "
            "'t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte', 'train-images-idx3-ubyte'"
        )

    def test_no_file(self, tmp_path):
        expected = ": expected IDX files such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz, found "
        assert error_of(tmp_path) == expected + "nothing"
        for i in range(9):
            (tmp_path / f"{i}.txt").touch()
        shown = "'0.txt', '1.txt', '2.txt', '3.txt', '4.txt', '5.txt'"
        assert error_of(tmp_path) == f"{expected}{shown} and 3 more"

    def test_two_sets(self, tmp_path):
        for split in ("emnist-letters-", "emnist-digits-"):
            write_idx(tmp_path, name=lambda name, split=split: split + name)
        assert error_of(tmp_path) == (
            ": expected the IDX files of one data set, found several, with the prefixes "
            "'emnist-digits-', 'emnist-letters-': give each a folder of its own"
        )

    def test_an_unreadable_folder(self, tmp_path, monkeypatch):
        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        assert error_of(tmp_path) == ": expected a readable folder, found Permission denied"

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "an IDX header of 16 bytes, found an empty file"),
            (b"\0\0\x08\x03\0\0", "an IDX header of 16 bytes, found only 6"),
            (b"\0\0", "magic 00000803 (uint8, 3 dimensions), found 0000 (not an IDX file)"),
            (b"hello, world", "magic 00000803 (uint8, 3 dimensions), found 68656c6c (not an IDX file)"),
            (
                idx_bytes(np.zeros(7, np.uint8)),
                "magic 00000803 (uint8, 3 dimensions), found 00000801 (uint8, 1 dimensions)",
            ),
            (
                b"\0\0\x0d\x03" + bytes(100),
                "magic 00000803 (uint8, 3 dimensions), found 00000d03 (float32, 3 dimensions)",
            ),
            (idx_bytes(small_set()[0])[:-1], "140 bytes for 7 x 5 x 4 uint8, found only 139"),
            (idx_bytes(small_set()[0]) + b"\0", "140 bytes for 7 x 5 x 4 uint8, found more after them"),
            (
                idx_bytes(np.zeros((0, 28, 28), np.uint8)),
                "1 byte to 4 GiB of data, found a header that claims 0 x 28 x 28 uint8",
            ),
            (
                b"\0\0\x08\x03" + b"\xff" * 12,
                "1 byte to 4 GiB of data, found a header that claims 4294967295 x 4294967295 x 4294967295 uint8",
            ),
        ],
        ids=["empty", "half a header", "half a magic", "text", "labels", "float32", "short", "long", "none", "huge"],
    )
    def test_a_wrong_file(self, tmp_path, suffix, content, message):
        write_idx(tmp_path, name=lambda name: name + suffix)
        path = tmp_path / (IDX_NAMES[0] + suffix)
        path.write_bytes(gzip.compress(content) if suffix else content)
        assert error_of(tmp_path) == f"{path.name}: expected {message}"

    def test_a_folder_in_place_of_a_file(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / IDX_NAMES[3]).unlink()
        (tmp_path / IDX_NAMES[3]).mkdir()
        assert error_of(tmp_path) == "t10k-labels-idx1-ubyte: expected a file, found a folder"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / IDX_NAMES[3]).unlink()
        os.mkfifo(tmp_path / IDX_NAMES[3])
        assert error_of(tmp_path) == "t10k-labels-idx1-ubyte: expected a regular file, found a device or pipe"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda gz: gz[: len(gz) // 2], "Compressed file ended before the end-of-stream marker was reached"),
            (lambda gz: gz[:-8] + bytes(8), "CRC check failed"),
            (lambda gz: gz[:10] + b"\xff" * 20, "Error -3 while decompressing data"),
        ],
        ids=["truncated", "checksum", "stream"],
    )
    def test_damaged_gzip(self, tmp_path, damage, message):
        write_idx(tmp_path, name=lambda name: name + ".gz")
        path = tmp_path / (IDX_NAMES[0] + ".gz")
        path.write_bytes(damage(path.read_bytes()))
        assert error_of(tmp_path).startswith(f"{path.name}: expected an intact file, found damage ({message}")

    def test_counts_that_differ(self, tmp_path):
        x_train, y_train, x_test, y_test = small_set()
        write_idx(tmp_path, (x_train, y_train[:-1], x_test, y_test))
        images = tmp_path / IDX_NAMES[0]
        assert error_of(tmp_path) == f"{IDX_NAMES[1]}: expected 7 labels, one for each image of {images}, found 6"

    def test_image_sizes_that_differ(self, tmp_path):
        x_train, y_train, x_test, y_test = small_set()
        write_idx(tmp_path, (x_train, y_train, x_test.transpose(0, 2, 1), y_test))
        images = tmp_path / IDX_NAMES[0]
        assert error_of(tmp_path) == f"{IDX_NAMES[2]}: expected images of 5 x 4 as in {images}, found 4 x 5"


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", ">i4", "uint16"])
    def test_labels_of_any_integer_type(self, tmp_path, save, dtype):
        x_train, y_train, x_test, y_test = small_set()
        path = tmp_path / "set.npz"
        save(path, x_train=x_train, y_train=y_train.astype(dtype), x_test=x_test, y_test=y_test.astype(dtype))
        assert same(load(path), small_set())

    def test_fortran_order(self, tmp_path):
        x_train = np.asfortranarray(small_set()[0])
        found = load(write_npz(tmp_path / "set.npz", x_train=x_train))
        assert same(found, small_set())
        assert found[0].flags.c_contiguous

    def test_a_file_of_any_name(self, tmp_path):
        path = write_npz(tmp_path / "set.npz")
        assert same(load(path.rename(tmp_path / "set")), small_set())

    def test_further_arrays_are_not_read(self, tmp_path):
        path = write_npz(tmp_path / "set.npz", classes=np.array(["pickled", None], object))
        assert same(load(path), small_set())

    def test_a_header_that_python_2_wrote(self, tmp_path):
        path = tmp_path / "set.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in zip(KEYS, small_set(), strict=True):
                shape = ", ".join(f"{length}L" for length in array.shape)
                header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape},), }}\n".encode()
                content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + array.tobytes()
                archive.writestr(f"{key}.npy", content)
        assert same(load(path), small_set())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x_train": small_set()[0].astype(float)}, "[x_train]: expected uint8 images, found float64"),
            ({"x_train": small_set()[0][0]}, "[x_train]: expected 3 dimensions, found 2 (5 x 4)"),
            ({"x_test": small_set()[2][..., None]}, "[x_test]: expected 3 dimensions, found 4 (3 x 5 x 4 x 1)"),
            ({"y_train": np.uint8(3)}, "[y_train]: expected 1 dimension, found 0 (a single number)"),
            ({"y_train": np.zeros(7)}, "[y_train]: expected integer labels, found float64"),
            ({"y_train": np.zeros(7, bool)}, "[y_train]: expected integer labels, found bool"),
            ({"y_train": np.zeros(7, "m8[s]")}, "[y_train]: expected integer labels, found timedelta64[s]"),
            ({"y_train": np.array([{}] * 7)}, "[y_train]: expected integer labels, found object"),
            ({"y_train": np.full(7, -1)}, "[y_train]: expected labels from 0 to 255, found -1"),
            ({"y_test": np.array([1, 256, 2])}, "[y_test]: expected labels from 0 to 255, found 256"),
            (
                {"x_train": small_set()[0][:0]},
                "[x_train]: expected 1 byte to 4 GiB of data, found a header that claims 0 x 5 x 4 uint8",
            ),
            (
                {"y_test": small_set()[3][:2]},
                "[y_test]: expected 3 labels, one for each image of {path}[x_test], found 2",
            ),
            (
                {"x_test": np.zeros((3, 28, 28), np.uint8)},
                "[x_test]: expected images of 5 x 4 as in {path}[x_train], found 28 x 28",
            ),
        ],
    )
    def test_a_wrong_array(self, tmp_path, changes, message):
        path = write_npz(tmp_path / "set.npz", **changes)
        assert error_of(path) == message.format(path=path)

    def test_a_missing_array(self, tmp_path):
        path = tmp_path / "set.npz"
        np.savez(path, x_train=small_set()[0], labels=small_set()[1])
        assert error_of(path) == ": expected an array y_train, found 'labels', 'x_train'"

    def test_no_unpickling(self, tmp_path):
        """An object array that would create a file when unpickled does not."""

        class Payload:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        path = write_npz(tmp_path / "set.npz", x_train=np.array([[[Payload()]]]))
        assert error_of(path) == "[x_train]: expected uint8 images, found object"
        assert not (tmp_path / "executed").exists()

    def test_neither_a_folder_nor_an_npz(self, tmp_path):
        path = tmp_path / IDX_NAMES[0]
        for content in (b"", idx_bytes(small_set()[0]), b"hello"):
            path.write_bytes(content)
            expected = ": expected a folder of IDX files or an .npz file, found a file that is not an .npz"
            assert error_of(path) == expected

    def test_a_missing_path(self, tmp_path):
        message = os.strerror(2)
        assert error_of(tmp_path / "nowhere") == f": expected a readable file, found {message}"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                b"\x93NUMPY\1\0",
                b"\x93NUMPY\2\0",
                r"a .npy header of version 1.0 (b'\x93NUMPY\x01\x00'), found b'\x93NUMPY\x02\x00'",
            ),
            (
                b"\x93NUMPY\1\0",
                b"PICKLE..",
                r"a .npy header of version 1.0 (b'\x93NUMPY\x01\x00'), found b'PICKLE..'",
            ),
            (
                b"(7, 5, 4), }",
                b"(7, 5, [), }",
                'a .npy header that gives type and shape, found b"'
                "{'descr': '|u1', 'fortran_order': False, 'shape': (7, 5, [), }" + " " * 18 + '"',
            ),
        ],
    )
    def test_a_damaged_header(self, tmp_path, old, new, message):
        path = write_members(tmp_path / "set.npz", npy_bytes(small_set()[0]).replace(old, new, 1))
        assert error_of(path) == f"[x_train]: expected {message}"

    @pytest.mark.parametrize(
        ("shape", "excess", "message"),
        [
            ((7, 5, 4), -1, "140 bytes for 7 x 5 x 4 uint8, found only 139"),
            ((7, 5, 4), 1, "140 bytes for 7 x 5 x 4 uint8, found more after them"),
            ((-7, -5, 4), 0, "1 byte to 4 GiB of data, found a header that claims -7 x -5 x 4 uint8"),
            ((2**33, 1, 1), 0, "1 byte to 4 GiB of data, found a header that claims 8589934592 x 1 x 1 uint8"),
        ],
    )
    def test_a_claim_that_does_not_hold(self, tmp_path, shape, excess, message):
        path = write_members(tmp_path / "set.npz", npy_header(shape) + bytes(140 + excess))
        assert error_of(path) == f"[x_train]: expected {message}"

    def test_other_compression_is_refused(self, tmp_path):
        path = tmp_path / "set.npz"
        write_members(path, npy_bytes(small_set()[0]), zipfile.ZIP_LZMA)
        assert error_of(path) == ": expected x_train stored or deflated, found zip method 14"

    def test_damage(self, tmp_path):
        path = write_npz(tmp_path / "set.npz")
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert error_of(path) == ": expected an intact .npz file, found damage (File is not a zip file)"
        pixels = content.index(small_set()[0].tobytes())
        path.write_bytes(content[:pixels] + b"\0\1" + content[pixels + 2 :])
        assert error_of(path) == ": expected an intact .npz file, found damage (Bad CRC-32 for file 'x_train.npy')"


class TestClaimsAllocateNothing:
    """A header may claim gigabytes; what is allocated follows the bytes that are there."""

    @staticmethod
    def error_within(path, limit=4 << 20):
        tracemalloc.start()
        try:
            message = error_of(path)
            assert tracemalloc.get_traced_memory()[1] < limit
            return message
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_idx(self, tmp_path, suffix):
        write_idx(tmp_path, name=lambda name: name + suffix)
        content = b"\0\0\x08\x03" + struct.pack(">3I", 5_000_000, 28, 28) + bytes(1000)
        (tmp_path / (IDX_NAMES[0] + suffix)).write_bytes(gzip.compress(content) if suffix else content)
        message = "expected 3920000000 bytes for 5000000 x 28 x 28 uint8, found only 1000"
        assert self.error_within(tmp_path).endswith(message)

    def test_npz(self, tmp_path):
        path = write_members(tmp_path / "set.npz", npy_header((70_000_000, 5, 4)) + bytes(140))
        message = "[x_train]: expected 1400000000 bytes for 70000000 x 5 x 4 uint8, found only 140"
        assert self.error_within(path) == message

    def test_gzip_bomb(self, tmp_path):
        """16 MiB behind a header that claims 140 bytes: one byte more than those is read."""
        write_idx(tmp_path, name=lambda name: name + ".gz")
        bomb = gzip.compress(idx_bytes(small_set()[0]) + bytes(16 << 20))
        (tmp_path / (IDX_NAMES[0] + ".gz")).write_bytes(bomb)
        message = "expected 140 bytes for 7 x 5 x 4 uint8, found more after them"
        assert self.error_within(tmp_path).endswith(message)

    def test_npz_bomb(self, tmp_path):
        path = write_members(tmp_path / "set.npz", npy_bytes(small_set()[0]) + bytes(16 << 20))
        message = "[x_train]: expected 140 bytes for 7 x 5 x 4 uint8, found more after them"
        assert self.error_within(path) == message

    def test_npz_header_bomb(self, tmp_path):
        """A header of version 2.0 has a length of 32 bits, and NumPy would read as much before it looks."""
        header = b"\x93NUMPY\2\0" + struct.pack("<I", 16 << 20) + b" " * (16 << 20)
        assert "version 1.0" in self.error_within(write_members(tmp_path / "set.npz", header))


class TestBatches:
    x = np.arange(10 * 6, dtype=np.uint8).reshape(10, 2, 3)
    y = np.arange(10)

    def test_in_order(self):
        parts = list(batches(self.x, self.y, 4, None))
        assert [len(x) for x, _ in parts] == [4, 4, 2]
        assert np.array_equal(np.concatenate([x for x, _ in parts]), self.x)
        assert all(np.shares_memory(x, self.x) for x, _ in parts)

    def test_shuffled(self):
        parts = list(batches(self.x, self.y, 4, np.random.default_rng(3)))
        order = np.concatenate([y for _, y in parts])
        assert np.array_equal(order, np.random.default_rng(3).permutation(10))
        assert all(np.array_equal(x, self.x[y]) and x.dtype == np.uint8 for x, y in parts)

    def test_drop_last(self):
        assert [len(x) for x, _ in batches(self.x, self.y, 4, None, drop_last=True)] == [4, 4]
        rng = np.random.default_rng(3)
        assert [len(x) for x, _ in batches(self.x, self.y, 5, rng, drop_last=True)] == [5, 5]

    def test_a_batch_larger_than_the_set(self):
        [(x, _)] = batches(self.x, self.y, 99, None)
        assert len(x) == 10

    def test_the_order_is_drawn_at_the_call(self):
        """Two epochs begun together do not depend on which is iterated first."""
        rng = np.random.default_rng(3)
        first, second = (batches(self.x, self.y, 4, rng) for _ in range(2))
        late = np.concatenate([y for _, y in second])
        early = np.concatenate([y for _, y in first])
        rng = np.random.default_rng(3)
        assert np.array_equal(early, rng.permutation(10))
        assert np.array_equal(late, rng.permutation(10))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((x, y[:9], 4, None), ValueError, "batches: x has 10 rows and y has 9"),
            ((x, y, 0, None), ValueError, "batches: batch_size must be at least 1, got 0"),
            ((x, y, -4, None), ValueError, "batches: batch_size must be at least 1, got -4"),
            ((x, y, 2.5, None), TypeError, "'float' object cannot be interpreted as an integer"),
            ((x, y, 4, 7), TypeError, "batches: rng must be np.random.default_rng(seed) or None, got 7"),
            ((x[:0], y[:0], 4, None), ValueError, "batches: 0 rows give no batch of 4 with drop_last=False"),
        ],
    )
    def test_errors_come_at_the_call(self, arguments, error, message):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            batches(*arguments)

    def test_nothing_left_to_iterate(self):
        with pytest.raises(ValueError, match=r"^batches: 10 rows give no batch of 11 with drop_last=True$"):
            batches(self.x, self.y, 11, None, drop_last=True)


class TestPreprocess:
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", np.float32])
    @pytest.mark.parametrize(
        "preprocess", [Preprocess(), Preprocess(mean=0.1307, std=0.3081), Preprocess(1 / 127.5, 1.0, 1.0, False)]
    )
    def test_values_and_dtype(self, preprocess, dtype):
        exact = (self.images * preprocess.scale - preprocess.mean) / preprocess.std
        found = preprocess(self.images, dtype)
        assert found.dtype == dtype
        assert found.shape == ((4, 64) if preprocess.flatten else (4, 8, 8))
        assert np.allclose(found, exact.reshape(found.shape), rtol=0, atol=4 * np.finfo(dtype).eps)

    def test_the_images_stay(self):
        before = self.images.copy()
        Preprocess()(self.images)[:] = 7
        assert np.array_equal(self.images, before)

    def test_no_image(self):
        assert Preprocess()(self.images[:0]).shape == (0, 64)

    @pytest.mark.parametrize("images", [images[0], images.astype("float32"), images.reshape(4, 64)])
    def test_pixels_are_not_scaled_twice(self, images):
        message = f"preprocess: images must be uint8 (n, h, w), got {images.dtype} {images.shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Preprocess()(images)

    def test_round_trip_through_json(self):
        record = Preprocess(mean=0.1307, std=0.3081)
        assert Preprocess.from_dict(json.loads(json.dumps(record.to_dict()))) == record

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({}, "preprocess: expected the keys scale, mean, std, flatten, found none"),
            (
                Preprocess().to_dict() | {"crop": 4},
                "preprocess: expected the keys scale, mean, std, flatten, found scale, mean, std, flatten, crop",
            ),
            (Preprocess().to_dict() | {"mean": "0.1"}, "preprocess: mean must be a finite number, got '0.1'"),
            (Preprocess().to_dict() | {"std": float("nan")}, "preprocess: std must be a finite number, got nan"),
            (
                Preprocess().to_dict() | {"std": 0.0, "scale": 1.0},
                "preprocess: scale must not be 0, std must be positive; got 1.0 and 0.0",
            ),
            (Preprocess().to_dict() | {"flatten": 1}, "preprocess: flatten must be true or false, got 1"),
            (
                Preprocess().to_dict() | {"flatten": [[[[[[[[1]]]]]]]]},
                "preprocess: flatten must be true or false, got [[[[[[[...]]]]]]]",
            ),
            (
                Preprocess().to_dict() | {"scale": 10**400},
                f"preprocess: scale must be a finite number, got 1{'0' * 17}...{'0' * 19}",
            ),
            (Preprocess().to_dict() | {"mean": True}, "preprocess: mean must be a finite number, got True"),
            (5, "preprocess: expected a record of scale, mean, std, flatten, got 5"),
            (None, "preprocess: expected a record of scale, mean, std, flatten, got None"),
            ([], "preprocess: expected a record of scale, mean, std, flatten, got []"),
        ],
    )
    def test_a_record_that_is_wrong(self, record, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Preprocess.from_dict(record)

    def test_describe(self):
        assert Preprocess().describe() == (
            "Pixels (0 to 255) are divided by 255, then flattened to one row for each image."
        )
        assert Preprocess(1.0, 33.3, 78.6, False).describe() == (
            "Pixels (0 to 255) are divided by 1, then less the mean 33.3, then divided by the standard deviation 78.6."
        )


def test_a_data_error_survives_pickling():
    """As it must, to come back from a worker process."""
    error = pickle.loads(pickle.dumps(DataError("file", "this", "that")))
    assert str(error) == "file: expected this, found that"
    assert isinstance(error, ValueError)
