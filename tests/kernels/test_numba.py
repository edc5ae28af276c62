import sys
from pathlib import Path

import pytest

from nnunet_godc.kernels import numba as compiling

numba = pytest.importorskip("numba", exc_type=ImportError)

MODULE = """
from numba import njit


@njit(cache=True)
def successor(x):
    return x + 1
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the folder's name is Linux's")
def test_what_is_compiled_is_kept_in_the_users_cache_and_not_beside_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, cache = tmp_path / "modules", tmp_path / "cache"
    modules.mkdir()
    (modules / "loops_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert compiling.load("loops_of_a_test").successor(1) == 2
    assert numba.config.CACHE_DIR == ""
    assert list((cache / "nnunet-godc").rglob("*.nbc"))
    assert not list(modules.rglob("*.nb?"))
