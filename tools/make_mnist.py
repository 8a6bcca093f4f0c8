"""Make the data file that the package embeds, from the four IDX files of MNIST.

    python tools/make_mnist.py FOLDER_OF_IDX

The same images give the same bytes wherever zlib is the same. The checksum printed at the end belongs in
`tinygrad_mnist/data/__init__.py`; `tests/test_data.py` proves that the arrays are those of the original files.
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from tinygrad_mnist.data import load

DEFAULT_OUTPUT = Path(__file__).parent.parent / "tinygrad_mnist" / "data" / "mnist.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded mnist.npz from a folder of IDX files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()

    # Deflate at its highest level takes 15 s here once, and is the fastest to read: 0.1 s, against 0.5 s for lzma.
    with zipfile.ZipFile(options.output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for key, array in zip(("x_train", "y_train", "x_test", "y_test"), load(options.folder), strict=True):
            member = zipfile.ZipInfo(f"{key}.npy")  # its date is 1980-01-01, not today
            member.create_system = 3  # else it depends on the platform
            member.compress_type = zipfile.ZIP_DEFLATED
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(member, content.getvalue(), compresslevel=9)
    print(hashlib.sha256(options.output.read_bytes()).hexdigest(), options.output)


if __name__ == "__main__":
    main()
