"""The compiled backend against the reference, and that it may be used wherever nnU-Net runs networks."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_godc.ops import _numba, _reference, backends, deform_conv
from nnunet_godc.ops._geometry import Arguments, output_size

pytestmark = pytest.mark.skipif(_numba.why_unusable() is not None, reason="numba is not usable here")


def arguments(
    *,
    size=(4, 5, 6),
    kernel=(3, 3, 3),
    batch=2,
    channels=8,
    outputs=6,
    groups=1,
    offset_groups=1,
    displaced=None,
    modulated=False,
    stride=1,
    dilation=1,
    spread=2.0,
    seed=0,
):
    """Input, offset, weight, mask of any sign, and the rest; offsets reach outside the map."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    taps = torch.Size(kernel).numel()
    displaced = len(kernel) if displaced is None else displaced
    padding = [dilation * (k // 2) for k in kernel]
    strides, dilations = [stride] * len(kernel), [dilation] * len(kernel)
    size_out = output_size(size, kernel, strides, padding, dilations)
    return Arguments(
        normal(batch, channels, *size),
        normal(batch, offset_groups * taps * displaced, *size_out) * spread,
        normal(outputs, channels // groups, *kernel),
        normal(batch, offset_groups * taps, *size_out) if modulated else None,
        padding,
        dilations,
        offset_groups,
        strides,
    )


def both_ways(arguments):
    """Output and gradients of this backend and of the reference."""
    bias = torch.linspace(-1, 1, len(arguments.weight))
    results = []
    for backend in (_numba, _reference):
        output = backend.forward(arguments, bias)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float32).view(output.shape).to(output.dtype)
        results.append((output, *backend.backward(grad, arguments)))
    return zip(*results, strict=True)


def assert_alike(arguments, tolerance=1e-5):
    for ours, reference in both_ways(arguments):
        assert ours.shape == reference.shape
        assert ours.dtype == reference.dtype
        assert ours.is_contiguous()  # as torch.compile is told, and builds its code on
        scale = reference.float().abs().max().item() if reference.numel() else 1.0
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance * max(scale, 1e-6))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulated": True},
        {"displaced": 2},
        {"displaced": 2, "modulated": True, "offset_groups": 2},
        {"kernel": (1, 3, 3)},
        {"kernel": (1, 3, 3), "displaced": 2},
        {"kernel": (3, 1, 2)},
        {"groups": 2},
        {"groups": 2, "offset_groups": 4, "modulated": True},
        {"dilation": 2, "size": (5, 6, 7)},
        {"stride": 2, "dilation": 2, "size": (7, 6, 9), "modulated": True},
        {"stride": 3, "size": (40, 50), "kernel": (3, 3)},
        {"size": (7, 9), "kernel": (3, 3)},
        {"size": (7, 9), "kernel": (3, 3), "groups": 2, "offset_groups": 2, "modulated": True},
        {"channels": 40, "outputs": 33},
        {"channels": 1, "outputs": 1},
        {"size": (1, 1, 1)},
        {"spread": 100.0},
    ],
    ids=str,
)
def test_output_and_gradients_are_those_of_the_reference(options):
    assert_alike(arguments(**options))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    kernel=st.tuples(*[st.sampled_from([1, 2, 3])] * 3),
    per_group=st.integers(1, 5),
    groups=st.sampled_from([1, 2]),
    offset_groups=st.sampled_from([1, 2]),
    displaced=st.sampled_from([2, 3]),
    modulated=st.booleans(),
    stride=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_any_shape_agrees_with_the_reference(
    size, kernel, per_group, groups, offset_groups, displaced, modulated, stride, seed
):
    size = tuple(max(n, k) for n, k in zip(size, kernel, strict=True))
    channels = per_group * groups * offset_groups
    assert_alike(
        arguments(
            size=size,
            kernel=kernel,
            channels=channels,
            outputs=2 * groups,
            groups=groups,
            offset_groups=offset_groups,
            displaced=displaced,
            modulated=modulated,
            stride=stride,
            seed=seed,
        )
    )


@pytest.mark.parametrize("n", [8, 16, 24])
@pytest.mark.parametrize("k", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("m", range(1, 15))
def test_products_of_any_size_are_added_to_what_lies_there(m, k, n):
    """In rows longer than the matrices, A by rows and by columns, and nothing beside them is touched."""
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal(shape, dtype=np.float32) for shape in ((m, k + 3), (k, n + 5), (m + 1, n + 7)))
    expected = c.copy()
    expected[:m, 2 : n + 2] += a[:, 1 : k + 1] @ b[:, 3 : n + 3]
    for flat, row, step in ((a.ravel(), k + 3, 1), (a.T.ravel(), 1, m)):
        summed = c.copy()
        _numba._kernels().add_product(
            *(flat, step, row, step, b.ravel(), 3, n + 5, summed.reshape(-1), 2, n + 7, m, k, n),
        )
        np.testing.assert_allclose(summed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_summed_in_single_precision(dtype):
    single = arguments(modulated=True)
    short = {name: getattr(single, name).to(dtype) for name in ("input", "weight", "mask")}
    assert_alike(single._replace(**short), tolerance=torch.finfo(dtype).eps * 2)


def test_a_map_of_many_chunks_is_the_same(monkeypatch):
    whole = list(both_ways(arguments(channels=16)))
    monkeypatch.setattr(_numba, "CHUNK_BYTES", 1)  # a tile of every thread is the smallest chunk
    for (one, _), (many, _) in zip(whole, both_ways(arguments(channels=16)), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_offsets_that_are_no_numbers_do_as_in_the_reference(value):
    displaced = arguments(spread=0.3, modulated=True)
    displaced.offset[0, 5, 1, 2, 3] = value
    for ours, reference in both_ways(displaced):
        torch.testing.assert_close(ours, reference, equal_nan=True, rtol=1e-5, atol=1e-4)
        assert torch.isnan(ours).any() == (value != value)


def test_memory_that_is_not_contiguous_is_read_rightly():
    compact = arguments()
    strided = compact._replace(
        input=compact.input.permute(0, 4, 3, 2, 1).contiguous().permute(0, 4, 3, 2, 1),
        offset=compact.offset.flip(0).flip(0).transpose(2, 4).contiguous().transpose(2, 4),
        weight=compact.weight.transpose(0, 1).contiguous().transpose(0, 1),
    )
    for (ours, _), (theirs, _) in zip(both_ways(strided), both_ways(compact), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_gradients_by_input_and_offset_do_not_depend_on_threads_or_runs(threads):
    convolution = arguments(channels=64, outputs=8)
    grad = torch.ones(2, 8, 4, 5, 6)
    results = []
    for count in (1, 2, 4, 4):
        threads(count)
        results.append(_numba.backward(grad, convolution)[:2])
    for result in results[1:]:
        torch.testing.assert_close(result[0], results[0][0], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))


def test_several_threads_may_call_at_once():
    convolution = arguments(channels=32)
    expected = _numba.forward(convolution, None)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(_numba.forward, convolution, None) for _ in range(32)]
        assert all(torch.equal(call.result(), expected) for call in calls)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_process_may_call_after_its_parent_did():
    """As nnU-Net's data loaders and Python's default for worker processes on Linux do."""
    code = (
        "import os, torch\n"
        "from nnunet_godc.ops import deform_conv\n"
        "torch.set_num_threads(2)\n"
        "def call():\n"
        # So small that PyTorch itself uses no threads of OpenMP, which are gone in the child.
        "    return deform_conv(torch.ones(1, 32, 6, 6, 6), torch.zeros(1, 81, 6, 6, 6), torch.ones(4, 32, 3, 3, 3),\n"
        "                       padding=1).sum().item()\n"
        "expected = call()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if call() == expected else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_is_chosen_on_the_cpu_and_double_precision_goes_to_the_reference():
    single = arguments()
    assert backends.select(single).name == "numba"
    assert backends.select(single._replace(input=single.input.double())).name == "reference"
    in_line = Arguments(
        torch.zeros(1, 2, 5, 5), torch.zeros(1, 9, 5, 5), torch.zeros(1, 2, 3, 3), None, *[[1, 1]] * 2, 1
    )
    assert backends.select(in_line).name == "reference"


def test_without_a_working_numba_one_warning_is_given_and_the_reference_computes(monkeypatch):
    def broken():
        raise OSError("no LLVM here")

    monkeypatch.setattr(_numba, "_kernels", broken)
    _numba.why_unusable.cache_clear()
    try:
        input, offset, weight, _, padding, *_ = arguments()
        with pytest.warns(RuntimeWarning, match="the slower reference") as caught:
            output = deform_conv(input, offset, weight, padding=padding)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(deform_conv(input, offset, weight, padding=padding), output)
        assert "reinstall numba" in backends.available_backends()["numba"]
    finally:
        monkeypatch.undo()
        _numba.why_unusable.cache_clear()


def test_kernels_are_kept_on_disk(tmp_path):
    """The second process finds what the first compiled; it takes a few seconds less."""
    code = (
        "from nnunet_godc.ops import _numba\n"
        "assert _numba.why_unusable() is None\n"
        "loops = _numba._kernels()\n"
        "print(sum(loop.stats.cache_hits[signature] for loop in (loops.forward, loops.differentiate, loops.scatter)\n"
        "          for signature in loop.stats.cache_hits))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert hits == [0, 3]
