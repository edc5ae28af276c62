"""Two processes as DistributedDataParallel runs them: the averaged gradients are those of one with the whole batch."""

import importlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch

from nnunet_godc.losses import GODCConfig
from nnunet_godc.losses.godc import Normalization

TIMEOUT = 300  # seconds
ONE_EACH = [[0], [2]]
TWO_AND_ONE = [[0, 2], [1]]
NORMALIZATIONS = get_args(Normalization)

CASES = [
    ({"normalization": normalization, "detach": detach}, samples, None, False)
    for normalization in NORMALIZATIONS
    for detach in (True, False)
    for samples in (ONE_EACH, TWO_AND_ONE)
]
CASES += [({"exponent": 2.0}, TWO_AND_ONE, None, False)]
CASES += [({"normalization": normalization}, TWO_AND_ONE, "aot_eager", False) for normalization in NORMALIZATIONS]
CASES += [({"normalization": normalization}, TWO_AND_ONE, None, True) for normalization in NORMALIZATIONS]
CASES += [({"detach": False}, ONE_EACH, None, True), ({"normalization": "running"}, TWO_AND_ONE, "aot_eager", True)]
CASES += [({"detach": False}, TWO_AND_ONE, "aot_eager", False), ({}, TWO_AND_ONE, "inductor", False)]
CXX = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
inductor_works = shutil.which(CXX) is not None


def describe(case):
    options, samples, backend, in_one_pass = case
    entries = [*options.values(), "+".join(str(len(rank)) for rank in samples), backend or "eager"]
    entries += ["one pass"] * in_one_pass
    return "-".join(str(entry) for entry in entries)


@pytest.fixture(scope="module")
def two_ranks():
    """The module with the work of one rank, under a name that the processes can import too."""
    path = Path(__file__).with_name("two_ranks.py")
    sys.path.insert(0, str(path.parent))
    yield importlib.import_module("two_ranks")
    sys.path.remove(str(path.parent))


@pytest.fixture(scope="module")
def results(two_ranks, tmp_path_factory):
    """What each rank got, for all cases: starting two processes takes longer than most of them."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = CASES if inductor_works else CASES[:-1]
    processes = torch.multiprocessing.spawn(two_ranks.run_rank, (folder, cases), nprocs=2, join=False)
    deadline = time.monotonic() + TIMEOUT
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


needs_compiler = pytest.mark.skipif(not inductor_works, reason=f"inductor needs a C++ compiler, and there is no {CXX}")


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(index, id=describe(case), marks=[needs_compiler] if case[2] == "inductor" else [])
        for index, case in enumerate(CASES)
    ],
)
def test_gradients_are_those_of_one_process_with_the_whole_batch(two_ranks, results, index):
    options, samples, *_ = CASES[index]
    loss = two_ranks.make_loss(GODCConfig(**options), ddp=False)
    steps, state = two_ranks.gradients(two_ranks.make_network(), loss, [*samples[0], *samples[1]])
    for rank in range(2):
        torch.testing.assert_close(results[rank][index], (steps, state), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_one_sample_per_rank_is_still_weighed(two_ranks, results, normalization):
    index = CASES.index(({"normalization": normalization, "detach": True}, ONE_EACH, None, False))
    dice = two_ranks.make_loss(GODCConfig(exponent=0.0), ddp=False)
    steps, _ = two_ranks.gradients(two_ranks.make_network(), dice, [*ONE_EACH[0], *ONE_EACH[1]])
    weighed = results[0][index][0]
    for (kernel, _), (kernel_of_dice, _) in zip(weighed, steps, strict=True):
        assert (kernel - kernel_of_dice).norm() > 1e-3 * kernel_of_dice.norm()
