"""The GPU kernels compiled ahead of time: the interpreter accepts what the compiler refuses. Needs no GPU.

The launches are made of tensors without memory, with the sizes of a level of a U-Net.
"""

from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

if find_spec("triton") is not None:
    from benchmarks._compiled import resources
    from nnunet_godc.ops._geometry import Arguments
    from nnunet_godc.ops._triton_launch import Call

# Bytes per thread: the assembler puts up to four registers aside where one more program can then run beside.
AT_THE_EDGE = 16

KERNELS = ["forward", "gradient_by_samples", "gradient_by_weight"]


def launch(
    kernel,
    channels,
    size,
    dtype,
    *,
    taps=(3, 3, 3),
    displaced=None,
    modulated=False,
    offset_groups=1,
    deterministic=False,
    offset_dtype=None,
    batch=2,
):
    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    displaced = len(taps) if displaced is None else displaced
    entries = offset_groups * torch.Size(taps).numel()
    offset = empty(batch, entries * displaced, *size, dtype=offset_dtype or dtype)
    mask = empty(batch, entries, *size) if modulated else None
    padding, dilation = [k // 2 for k in taps], [1] * len(taps)
    features, weight = empty(batch, channels, *size), empty(channels, channels, *taps)
    call = Call(Arguments(features, offset, weight, mask, padding, dilation, offset_groups))
    output = empty(batch, channels, *size)
    if kernel == "forward":
        return call.forward(empty(channels), output)
    if kernel == "gradient_by_weight":
        return call.gradient_by_weight(output)
    grad_table = torch.empty_like(call.table, dtype=torch.int64 if deterministic else torch.float32)
    factor = empty(dtype=torch.float32) if deterministic else None
    return call.gradient_by_samples(output, grad_table, offset, mask, factor)


def assert_no_spills(kernel, at_most=0):
    assert resources(kernel).spilled <= at_most


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_finest_level_compiles_without_spilling(kernel, capability):
    assert_no_spills(launch(kernel, 32, (128, 128, 128), torch.float16).compile(capability))


@pytest.mark.slow
# each capability and each dtype; all pairs would take the machine code of twice as many kernels
@pytest.mark.parametrize(("capability", "dtype"), [(80, torch.float16), (90, torch.bfloat16), (90, torch.float32)])
@pytest.mark.parametrize(
    ("channels", "extent"),
    [(32, 128), (64, 64), (128, 32), (256, 16), (320, 8), (8, 128), (16, 64), (80, 8)],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_level_compiles_and_hardly_spills(kernel, channels, extent, capability, dtype):
    assert_no_spills(launch(kernel, channels, (extent,) * 3, dtype).compile(capability), AT_THE_EDGE)


OPTIONS = [
    {"taps": (1, 3, 3), "displaced": 2},
    {"taps": (1, 3, 3), "displaced": 2, "modulated": True},
    {"modulated": True, "offset_groups": 2},
    {"offset_dtype": torch.float32},
    {"taps": (3, 3), "size": (512, 512)},
    {"deterministic": True},
    {"taps": (1, 1), "size": (2, 2), "batch": 1},  # numbers that are 1 are compiled in
]


@pytest.mark.parametrize("options", [OPTIONS[1], OPTIONS[-2]], ids=str)
def test_options_compile_without_spilling(options):
    assert_no_spills(launch("gradient_by_samples", 32, (128, 128, 128), torch.bfloat16, **options).compile(90))


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_option_compiles_and_hardly_spills(kernel, options):
    arguments = {"size": (128, 128, 128)} | options
    assert_no_spills(launch(kernel, 32, dtype=torch.float16, **arguments).compile(80), AT_THE_EDGE)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_smallest_call_compiles(kernel):
    assert launch(kernel, 16, dtype=torch.float16, **OPTIONS[-1]).compile(80).asm["cubin"]


def test_gradients_are_added_four_channels_at_a_time_on_hopper():
    code = launch("gradient_by_samples", 32, (128, 128, 128), torch.float16).compile(90).asm["ptx"]
    assert code.count("red.global.gpu.relaxed.add.v4.f32") == 8  # a point each


@pytest.mark.parametrize("kernel", ["forward", "gradient_by_weight"])
def test_rows_are_gathered_sixteen_bytes_per_thread_and_products_are_the_tensor_cores(kernel):
    code = launch(kernel, 32, (128, 128, 128), torch.float16).compile(80).asm["ptx"]
    assert code.count("ld.global.v4.b32") >= 16
    assert "mma.sync.aligned" in code
