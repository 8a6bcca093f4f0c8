"""Run a script, or a module, on the pretend GPU, as Python would run it:

    python tests/pretend_gpu SCRIPT [ARGUMENT ...]
    python tests/pretend_gpu -m MODULE [ARGUMENT ...]
"""

import os
import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the folder of the package; Python had put the package itself
import pretend_gpu  # noqa: E402

try:
    pretend_gpu.load()
except pretend_gpu.Unavailable as reason:
    print(reason, file=sys.stderr)
    sys.exit(2)

del sys.argv[0]
sys.path.remove(str(Path(__file__).resolve().parents[1]))
if sys.argv[:1] == ["-m"]:
    del sys.argv[0]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
elif sys.argv:
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
