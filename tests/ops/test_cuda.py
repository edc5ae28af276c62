"""The gradient in CUDA C++: its source compiled for the CPU against the reference, for GPUs, and natively on one."""

import ctypes
import math
import platform
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_godc.ops import _cuda, _nvrtc, _reference, backends, deform_conv
from nnunet_godc.ops._geometry import Arguments
from nnunet_godc.ops._triton_launch import Call
from tests.ops import interpreted_triton

ON_CPU = Path(__file__).with_name("cuda_on_cpu.h")
H100, A100, CONSUMER = 232448, 166912, 101376  # bytes of shared memory that a block may have

# Relative to the largest value: weights and dS are rounded once, and so is the result.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Case(interpreted_triton.Case):
    size: tuple[int, ...] = (3, 5, 9)  # two tiles along each axis
    kernel: tuple[int, ...] = (3, 3, 3)
    spread: float = 1.0
    dtype: torch.dtype = torch.float16
    offset_dtype: torch.dtype = torch.float16
    shared_memory: int = H100
    backwards: bool = False  # in which order threads take turns


PLAIN = Case()
BFLOAT = replace(PLAIN, dtype=torch.bfloat16, offset_dtype=torch.bfloat16)
TWO_D = replace(PLAIN, size=(9, 11), kernel=(3, 3), displaced=2)
CASES = {
    "3D": PLAIN,
    "3D, threads in the other order": replace(PLAIN, backwards=True),
    "bfloat16, two samples": replace(BFLOAT, size=(2, 4, 6), batch=2),
    "offsets in float32": replace(PLAIN, size=(2, 4, 9), offset_dtype=torch.float32),
    "no offsets": replace(PLAIN, spread=0.0),
    "most samples beyond the window": replace(PLAIN, size=(4, 6, 9), spread=8.0, kernel=(1, 2, 2)),
    "taps in parts, as shared memory is small": replace(PLAIN, size=(2, 4, 9), shared_memory=CONSUMER),
    "channels and outputs in several blocks": replace(PLAIN, size=(2, 3, 4), channels=72, outputs=33),
    "offset groups": replace(PLAIN, size=(2, 4, 6), channels=96, offset_groups=2, kernel=(1, 3, 3)),
    "stride and dilation": replace(PLAIN, size=(3, 9, 11), kernel=(2, 3, 2), stride=2, dilation=3),
    "2D": TWO_D,
    "2D, bfloat16, offset groups": replace(BFLOAT, size=(5, 17), kernel=(2, 3), displaced=2, offset_groups=2),
    "in-plane": replace(PLAIN, kernel=(1, 3, 3), displaced=2),
    "in-plane offsets of taps in several planes": replace(PLAIN, size=(3, 5, 6), kernel=(3, 1, 3), displaced=2),
    "one slice, one row": replace(PLAIN, size=(1, 1, 5)),
}


def tensors(case):
    """Grad of the output, and the arguments."""
    grad, input, offset, weight, _, mask, rest = interpreted_triton.tensors(case)
    return grad, Arguments(input, offset, weight, mask, *rest)


def in_float64(arguments):
    return arguments._replace(**{name: getattr(arguments, name).double() for name in ("input", "offset", "weight")})


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """Gradients by input (float32) and offset as the kernel's source computes them, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("needs g++ on Linux")
    folder = tmp_path_factory.mktemp("kernel")
    libraries = {}

    def library(constants):
        key = tuple(constants.items())
        if key not in libraries:
            path = folder / f"{len(libraries)}.so"
            macros = [f"-D{name}={value}" for name, value in constants.items()]
            command = [compiler, "-std=c++17", "-O1", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"]
            command += [*macros, f'-DKERNEL="{_cuda.SOURCE}"', "-x", "c++", str(ON_CPU), "-o", str(path)]
            finished = subprocess.run(command, capture_output=True, text=True)
            if "_Float16" in finished.stderr:
                pytest.skip("this g++ has no _Float16")
            assert finished.returncode == 0, finished.stderr
            libraries[key] = ctypes.CDLL(str(path))
        return libraries[key]

    def gradients(grad, arguments, shared_memory=H100, backwards=False):
        call = Call(arguments)
        grad_table = torch.zeros_like(call.table, dtype=torch.float32)
        grad_offset = torch.full_like(arguments.offset, 77)
        launch = _cuda.launch_gradient(call, grad, grad_table, grad_offset, shared_memory)
        compiled = library(launch.constants)
        compiled.shared_bytes.restype = ctypes.c_size_t
        assert launch.shared_bytes == compiled.shared_bytes(launch.argument.outputs)
        assert launch.shared_bytes <= shared_memory
        grid = (ctypes.c_uint * 3)(*launch.grid)
        size = ctypes.c_size_t(launch.shared_bytes)
        status = compiled.run(ctypes.byref(launch.argument), grid, launch.threads, size, backwards)
        assert status == 0, "the kernel writes beyond its shared memory"
        return call.input_like(grad_table), grad_offset

    return gradients


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_reference(on_cpu, name):
    case = CASES[name]
    grad, arguments = tensors(case)
    ours = on_cpu(grad, arguments, case.shared_memory, case.backwards)
    expected = _reference.backward(grad.double(), in_float64(arguments))
    for value, reference in zip(ours, expected, strict=False):
        scale = max(reference.abs().max().item(), 1e-6)
        torch.testing.assert_close(value.double(), reference, rtol=0, atol=TOLERANCE[case.dtype] * scale)


def test_samples_just_beyond_the_window_count_once(on_cpu):
    """They lie beside the window's last voxels, and beside its last samples in memory."""
    grad, arguments = tensors(replace(PLAIN, size=(6, 4, 8), kernel=(1, 1, 1), spread=0.0))
    arguments.offset[0, 0, 1::2] = 1.5
    arguments.offset[0, 0, 1::2, :, ::3] = 2.5
    expected = _reference.backward(grad.double(), in_float64(arguments))
    for value, reference in zip(on_cpu(grad, arguments), expected, strict=False):
        difference = (value.double() - reference).abs().max() / reference.abs().max()
        assert difference < TOLERANCE[torch.float16]


# of float16: the smallest numbers there are, and the largest
@pytest.mark.parametrize("largest", [2.0**-20, 60000.0])
def test_gradients_of_any_size_keep_their_digits(on_cpu, largest):
    grad, arguments = tensors(replace(PLAIN, size=(2, 4, 9), offset_dtype=torch.float32))
    grad = (grad.float() / grad.abs().max() * largest).half()
    expected = _reference.backward(grad.double(), in_float64(arguments))
    for value, reference in zip(on_cpu(grad, arguments), expected, strict=False):
        difference = (value.double() - reference).abs().max() / reference.abs().max()
        assert difference < TOLERANCE[torch.float16]


def test_a_gradient_of_zero_stays_zero(on_cpu):
    grad, arguments = tensors(replace(PLAIN, size=(2, 4, 9)))
    assert not any(value.any() for value in on_cpu(torch.zeros_like(grad), arguments))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_a_gradient_that_is_not_finite_shows_wherever_it_does_in_the_reference(on_cpu, value, spread):
    """GradScaler has to find it."""
    grad, arguments = tensors(replace(PLAIN, size=(6, 9, 12), spread=spread))
    grad[0, 3, 1, 2, 4] = value
    grad_input, grad_offset = on_cpu(grad, arguments)
    assert not grad_offset[0, :, 1, 2, 4].isfinite().any()

    read = torch.zeros_like(grad)
    read[0, 3, 1, 2, 4] = 1
    ones = in_float64(arguments._replace(weight=torch.ones_like(arguments.weight)))
    by_input, *_ = _reference.backward(read.double(), ones)
    assert by_input.any()
    assert not grad_input[by_input != 0].isfinite().any()


def test_offsets_that_are_not_finite_show_in_their_voxel_and_infinite_ones_read_zero(on_cpu):
    input, offset, weight = torch.ones(1, 16, 2, 3, 4), torch.zeros(1, 3, 2, 3, 4), torch.ones(16, 16, 1, 1, 1)
    offset[0, 0, 0, 1, 2] = float("nan")
    offset[0, 1, 1, 1, 1] = float("inf")
    offset[0, 2, 1, 2, 0] = -float("inf")
    arguments = Arguments(input.half(), offset.half(), weight.half(), None, [0] * 3, [1] * 3, 1)
    grad = torch.ones(1, 16, 2, 3, 4).half()
    grad_input, grad_offset = on_cpu(grad, arguments)
    _, expected, _, _ = _reference.backward(grad.double(), in_float64(arguments))
    torch.testing.assert_close(grad_offset.double(), expected, equal_nan=True)
    assert grad_input.isnan().any()


@pytest.mark.parametrize("shared_memory", [CONSUMER, A100, H100])
@pytest.mark.parametrize("outputs", [16, 512])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3, 3), 1), ((7, 7, 7), 1), ((3, 3, 3), 12), ((3, 3), 1)])
def test_a_block_fits_into_shared_memory(shared_memory, outputs, kernel, dilation):
    def empty(*shape):
        return torch.empty(shape, dtype=torch.float16, device="meta")

    size = (32,) * len(kernel)
    offset, ones = empty(2, len(kernel) * math.prod(kernel), *size), [1] * len(kernel)
    padding = [dilation * (k // 2) for k in kernel]
    weight = empty(outputs, 16, *kernel)
    call = Call(Arguments(empty(2, 16, *size), offset, weight, None, padding, [dilation] * len(kernel), 1, ones))
    grad_table = torch.empty_like(call.table, dtype=torch.float32)
    launch = _cuda.launch_gradient(call, empty(2, outputs, *size), grad_table, offset, shared_memory)
    assert launch.shared_bytes <= shared_memory
    assert launch.grid[1] * launch.constants["TAPS_AT_ONCE"] >= math.prod(kernel)


@pytest.mark.parametrize(("capability", "name"), [(80, "3D"), (90, "bfloat16, two samples"), (90, "2D")])
def test_it_compiles_for_gpus(capability, name):
    try:
        _nvrtc.nvrtc()
    except OSError as error:
        pytest.skip(str(error))
    case = CASES[name]
    grad, arguments = tensors(case)
    call = Call(arguments)
    launch = _cuda.launch_gradient(call, grad, call.table.float(), arguments.offset, H100)
    assert _cuda.compile(launch.constants, capability).startswith(b"\x7fELF")


def on_a_gpu(*shape, dtype=torch.float16):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


def test_calls_that_the_kernel_does_not_know_are_left_to_triton():
    def supports(input, offset, weight, mask=None):
        return _cuda.supports(Arguments(input, offset, weight, mask, [1] * 3, [1] * 3, 1))

    input, offset, weight = on_a_gpu(1, 8, 4, 4, 4), on_a_gpu(1, 81, 4, 4, 4), on_a_gpu(8, 8, 3, 3, 3)
    assert supports(input, offset, weight)
    assert supports(input, on_a_gpu(1, 81, 4, 4, 4, dtype=torch.float32), weight)
    assert not supports(input, on_a_gpu(1, 81, 4, 4, 4, dtype=torch.bfloat16), weight)
    assert not supports(input, offset, weight, on_a_gpu(1, 27, 4, 4, 4))
    assert not supports(input, offset, on_a_gpu(1024, 8, 3, 3, 3))
    assert not supports(*(on_a_gpu(*value.shape, dtype=torch.float32) for value in (input, offset, weight)))
    torch.use_deterministic_algorithms(True)
    try:
        assert not supports(input, offset, weight)
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_is_off_unless_switched_on(monkeypatch):
    monkeypatch.delenv(_cuda.SWITCH, raising=False)
    assert "NNUNET_GODC_CUDA_GRADIENT=1" in _cuda.why_unusable()
    monkeypatch.setenv(_cuda.SWITCH, "1")
    if not torch.cuda.is_available():
        assert _cuda.why_unusable() == "PyTorch sees no CUDA device"


gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")


@gpu
@needs_gpu
def test_on_a_gpu_it_is_chosen_where_it_is_switched_on(monkeypatch):
    _, arguments = tensors(PLAIN)
    arguments = to_gpu(arguments)
    monkeypatch.delenv(_cuda.SWITCH, raising=False)
    assert backends.select(arguments).name == "triton"
    monkeypatch.setenv(_cuda.SWITCH, "1")
    assert _cuda.why_unusable() is None
    assert backends.select(arguments).name == "cuda"


def to_gpu(arguments):
    return arguments._replace(**{name: getattr(arguments, name).cuda() for name in ("input", "offset", "weight")})


def assert_natively_right(grad, arguments, tolerance):
    ours = _cuda.backward(grad.cuda(), to_gpu(arguments))
    expected = _reference.backward(grad.double().cuda(), to_gpu(in_float64(arguments)))
    for value, reference in zip(ours, expected, strict=True):
        scale = max(reference.abs().max().item(), 1e-6) if reference.numel() else 0.0
        torch.testing.assert_close(value.double(), reference, rtol=0, atol=tolerance * scale)


@gpu
@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_natively_gradients_are_those_of_the_reference(name):
    assert_natively_right(*tensors(CASES[name]), 1.5 * TOLERANCE[CASES[name].dtype])


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "size"), [(32, (33, 40, 50)), (64, (20,) * 3), (320, (8,) * 3), (32, (70, 90))])
def test_natively_levels_of_a_network_agree_with_the_reference(channels, size, dtype):
    case = Case(size=size, kernel=(3,) * len(size), batch=2, channels=channels, outputs=channels, displaced=len(size))
    grad, arguments = tensors(replace(case, dtype=dtype, offset_dtype=dtype))
    # between grid points, where the gradient by the offset jumps: float32 rounds some positions onto them
    offset = ((arguments.offset.float() * 16).round() + 0.5) / 16
    arguments = arguments._replace(offset=offset.to(dtype), weight=arguments.weight / math.sqrt(27 * channels))
    assert_natively_right(grad, arguments, 4 * TOLERANCE[dtype])


@gpu
@needs_gpu
def test_natively_it_runs_on_the_current_stream_and_in_the_backward_pass_of_autograd(monkeypatch):
    monkeypatch.setenv(_cuda.SWITCH, "1")
    grad, arguments = tensors(replace(PLAIN, size=(16, 16, 16), channels=32, outputs=32))
    grad, arguments = grad.cuda(), to_gpu(arguments)
    expected = _cuda.backward(grad, arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        leaves = [value.clone().requires_grad_() for value in arguments[:3]]
        output = deform_conv(*leaves, padding=1)
        ours = torch.autograd.grad(output, leaves, grad)
    stream.synchronize()
    for value, reference in zip(ours, expected, strict=False):
        torch.testing.assert_close(value, reference, rtol=0, atol=2e-3 * reference.abs().max().item())
