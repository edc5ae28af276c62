"""What loops compiled by numba need here: their place on disk, and threads that survive a fork."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch

LANES = 8  # floats of a vector in loops written with vectors; arrays are padded to a multiple of it
TILE = 32  # voxels that such loops take at once


def why_unusable(attempt: Callable[[], None], consequence: str) -> str | None:
    """None where numba is installed and the attempt succeeds, else the reason; a failure is warned about."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: pip install numba"
    try:
        attempt()
    except Exception as error:  # numba raises what LLVM, the file system or its own typing raise
        reason = f"numba cannot compile here ({type(error).__name__}); reinstall numba and llvmlite"
        warnings.warn(f"nnunet-godc: {reason}; {consequence}", RuntimeWarning, stacklevel=3)
        return reason
    return None


def load(name: str) -> ModuleType:
    """The module of compiled loops, from numba's cache on disk if this processor has met them before.

    The cache lies in the user's folder for such files unless NUMBA_CACHE_DIR names another: beside the modules, where
    numba would put it, uninstalling would leave it behind.
    """
    from numba import config
    from numba.misc.appdirs import user_cache_dir

    before = config.CACHE_DIR  # type: ignore[attr-defined]
    config.CACHE_DIR = before or user_cache_dir("nnunet-godc", appauthor=False)  # type: ignore[attr-defined]
    try:
        return import_module(name)
    except RuntimeError:
        # Neither that folder nor the package's can be written: compile once per process.
        config.CACHE_DIR = tempfile.mkdtemp(prefix="nnunet_godc_numba_")  # type: ignore[attr-defined]
        return import_module(name)
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]


def parts(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """The range in at most so many parts of about one size, none of them empty."""
    bounds = np.linspace(first, last, max(1, count) + 1).astype(int).tolist()
    return [(start, stop) for start, stop in pairwise(bounds) if stop > start]


def in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Runs the tasks at once, the first in this thread and the others in threads of ours, as many as PyTorch uses."""
    first, *others = tasks
    waiting = [_pool(os.getpid(), torch.get_num_threads()).submit(task) for task in others]
    first()
    for future in waiting:
        future.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # The threads of another process do not come along when it forks; hence a pool per process.
    return ThreadPoolExecutor(threads, thread_name_prefix="nnunet_godc")
