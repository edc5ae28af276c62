"""The GPU backend: its kernels in Triton's interpreter against the reference, and natively where there is a GPU."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_godc.ops import _reference, _triton, backends, deform_conv
from nnunet_godc.ops._geometry import Arguments
from tests.ops.interpreted_triton import CASES, run, tensors

# Relative to the largest value: two roundings, of float32 those of the sums.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 3e-6}


@pytest.fixture(scope="module")
def interpreted():
    """What the interpreter computed, case by case, from one process: Triton is told of it before it is imported."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.ops.interpreted_triton"],
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_reference(interpreted, name):
    errors = interpreted[name]
    assert isinstance(errors, dict), errors  # else a traceback
    assert set(errors) == {"output", "input", "offset", "weight"} | ({"mask"} if CASES[name].modulated else set())
    tolerance = TOLERANCE[CASES[name].dtype]
    assert {key: error for key, error in errors.items() if not error < tolerance} == {}


@pytest.mark.parametrize("kind", ["special values", "special values, deterministic"])
def test_offsets_that_are_no_numbers_show_in_their_voxel_and_gradients_and_infinite_ones_read_zero(interpreted, kind):
    results = zip(("output", "input", "offset", "weight", "mask"), *interpreted[kind], strict=True)
    for name, ours, reference in results:
        assert torch.tensor(ours).isnan().any(), name
        if name != "input":  # to which voxels a NaN is added, nothing tells
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(reference), equal_nan=True)


def test_an_infinite_gradient_is_not_hidden_by_integers(interpreted):
    """GradScaler has to find it."""
    assert interpreted["infinite gradient"] == 0


def test_deterministic_gradients_of_zero_are_zero(interpreted):
    assert interpreted["zero gradient"] == 0


def on_a_gpu(*shape, dtype=torch.float16):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def supports(input, offset, weight):
    ones = [1] * (input.dim() - 2)
    return _triton.supports(Arguments(input, offset, weight, None, ones, ones, 1))


def test_calls_that_the_kernels_do_not_know_are_left_to_the_reference():
    input, offset, weight = on_a_gpu(1, 8, 4, 4, 4), on_a_gpu(1, 81, 4, 4, 4), on_a_gpu(8, 8, 3, 3, 3)
    assert supports(input, offset, weight)
    double, in_line = on_a_gpu(1, 8, 4, 4, 4, dtype=torch.float64), on_a_gpu(1, 9, 4, 4)
    assert not supports(double, offset, weight)
    assert not supports(input, offset, on_a_gpu(8, 4, 3, 3, 3))  # two groups
    assert not supports(input, offset, on_a_gpu(8, 8, 3, 3, 3, dtype=torch.float32))  # two dtypes
    assert not supports(on_a_gpu(1, 8, 4, 4), in_line, on_a_gpu(8, 8, 3, 3))  # one axis displaced
    assert not supports(on_a_gpu(1, 8, 4, 4, 1), on_a_gpu(1, 81, 4, 4, 1), weight)  # one column
    assert not supports(on_a_gpu(0, 8, 4, 4, 4), on_a_gpu(0, 81, 4, 4, 4), weight)
    assert not supports(torch.zeros(1, 8, 4, 4, 4), torch.zeros(1, 81, 4, 4, 4), torch.zeros(8, 8, 3, 3, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_told():
    assert backends.available_backends()["triton"] == "PyTorch sees no CUDA device"


gpu = pytest.mark.gpu
# not where the kernels cannot be used: on a GPU that is a failure
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")


@gpu
@needs_gpu
def test_on_a_gpu_the_kernels_are_usable_and_chosen():
    assert _triton.why_unusable() is None
    input, offset, weight, _, mask = level(extent=4)
    assert backends.select(Arguments(input, offset, weight, mask, [1] * 3, [1] * 3, 1)).name == "triton"


def to_gpu(values):
    return [None if value is None else value.cuda() for value in values]


def level(channels=32, extent=24, batch=2, dtype=torch.float16, displaced=3, modulated=True):
    """Input, offset, weight, bias and mask as one level of a network has them."""
    torch.manual_seed(0)
    taps = (3, 3, 3) if displaced == 3 else (1, 3, 3)
    count, size = math.prod(taps), (extent,) * 3
    weight = torch.randn(channels, channels, *taps, device="cuda") / math.sqrt(channels * count)
    # between grid points, where the gradient by the offset jumps: float32 rounds some positions onto them
    offset = (torch.randn(batch, count * displaced, *size, device="cuda") * 1.5 * 256).round().add(0.5) / 256
    return [
        torch.randn(batch, channels, *size, device="cuda").to(dtype),
        offset,
        weight.to(dtype),
        torch.randn(channels, device="cuda").to(dtype),
        torch.rand(batch, count, *size, device="cuda").to(dtype) if modulated else None,
    ]


def loss(input, offset, weight, bias, mask):
    output = deform_conv(input, offset, weight, bias, padding=[k // 2 for k in weight.shape[2:]], mask=mask)
    return (output * torch.linspace(-1, 1, output.numel(), device="cuda").view_as(output)).sum()


def gradients(values, function=loss):
    leaves = [None if value is None else value.detach().clone().requires_grad_() for value in values]
    return torch.autograd.grad(function(*leaves), [leaf for leaf in leaves if leaf is not None])


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_natively_output_and_gradients_are_those_of_the_reference(name, dtype, monkeypatch):
    case = CASES[name]
    *values, rest = tensors(case)
    values = [value if value is None else value.to(dtype) for value in values]
    monkeypatch.setattr(_triton, "WORKSPACE", case.workspace)
    ours = run(_triton, *to_gpu(values), rest)
    expected = run(_reference, *(value if value is None else value.double() for value in values), rest)
    for value, reference in zip(ours, expected, strict=True):
        scale = reference.abs().max().item() if reference.numel() else 0.0
        torch.testing.assert_close(value.cpu().double(), reference, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1e-6))


@gpu
@needs_gpu
@pytest.mark.parametrize("channels", [8, 32, 64, 80, 128, 256, 320])
@pytest.mark.parametrize("displaced", [2, 3])
def test_levels_of_a_network_agree_with_the_reference(channels, displaced):
    values = level(channels, displaced=displaced, extent=12)
    ours = gradients(values)
    reference = [None if value is None else value.double() for value in values]
    for value, expected in zip(ours, gradients(reference), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=4e-3 * scale)


@gpu
@needs_gpu
def test_deterministic_algorithms_give_identical_gradients(monkeypatch):
    values = level()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(values), gradients(values)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for one, other in zip(first, gradients(values), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * other.abs().max().item())


@gpu
@needs_gpu
def test_opcheck_finds_nothing_on_a_gpu():
    values = level(channels=8, extent=4, dtype=torch.float32)
    arguments = ([1, 1, 1], [1, 1, 1], [1, 1, 1], 1)
    torch.library.opcheck(torch.ops.nnunet_godc.deform_conv.default, (*values, *arguments))
    input, offset, weight, _, mask = values
    backward = (torch.ones_like(input), input, offset, weight, mask, *arguments)
    torch.library.opcheck(torch.ops.nnunet_godc.deform_conv_backward.default, backward)


@gpu
@needs_gpu
def test_compiles_as_one_graph_on_a_gpu():
    torch._dynamo.reset()
    values = level(extent=8)
    compiled = torch.compile(loss, fullgraph=True)
    for ours, expected in zip(gradients(values, compiled), gradients(values), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


@gpu
@needs_gpu
def test_a_step_under_autocast_with_gradient_scaling():
    input, offset, weight, bias, mask = (value.float() for value in level(extent=8))
    weight.requires_grad_()
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cuda")
    before = weight.detach().clone()
    with torch.autocast("cuda"):
        value = deform_conv(input, offset, weight, bias, padding=1, mask=mask).float().square().mean()
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.isfinite().all()
    assert not weight.equal(before)


@gpu
@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_it_runs_on_the_gpu_where_its_tensors_are():
    values = [value.to("cuda:1") for value in level(extent=8)]
    *convolved, bias, mask = values
    expected = _reference.forward(Arguments(*convolved, mask, [1, 1, 1], [1, 1, 1], 1), bias)
    torch.testing.assert_close(deform_conv(*convolved, bias, padding=1, mask=mask), expected, rtol=1e-2, atol=1e-2)


@gpu
@needs_gpu
def test_offsets_are_predicted_as_a_whole_multiple_of_channels():
    pytest.importorskip("dynamic_network_architectures", reason="LFAM needs nnU-Net's networks")
    from nnunet_godc.alignment import LateralFeatureAlignment

    module = LateralFeatureAlignment(16, (3, 3, 3)).cuda()
    skip = torch.randn(1, 16, 8, 8, 8, device="cuda", dtype=torch.float16)
    with torch.autocast("cuda"), torch.profiler.profile(record_shapes=True) as profile:
        assert module(skip).shape == skip.shape
    assert [96, 16, 3, 3, 3] in [event.input_shapes[1] for event in profile.events() if event.name == "aten::conv3d"]
