"""The nvcc that setup.py would take, found as it looks for one."""

import os
import shutil

NONE = "there is no nvcc in $CUDA_HOME, $CUDA_PATH, PATH or /usr/local/cuda: install the CUDA toolkit"


def find() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [*(os.path.join(home, "bin", "nvcc") for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, places)), None)
