"""The deformable convolution: its values, its gradients, and its citizenship in PyTorch."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from nnunet_godc.ops import available_backends, backends, deform_conv
from nnunet_godc.ops._geometry import Arguments, output_size

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def interpolate(image: Tensor, position: list[Tensor]) -> Tensor:
    """Linear interpolation of one channel at one position, corner by corner, zero outside; slow and plain."""
    value = image.new_zeros(())
    low = [math.floor(coordinate.item()) for coordinate in position]
    for corner in itertools.product((0, 1), repeat=len(position)):
        index = [start + step for start, step in zip(low, corner, strict=True)]
        if all(0 <= i < size for i, size in zip(index, image.shape, strict=True)):
            weight = image.new_ones(())
            for coordinate, start, step in zip(position, low, corner, strict=True):
                fraction = coordinate - start
                weight = weight * (fraction if step else 1 - fraction)
            value = value + weight * image[tuple(index)]
    return value


def slow_deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    mask: Tensor | None = None,
    stride: tuple[int, ...] = (1, 1, 1),
    offset_groups: int = 1,
) -> Tensor:
    """The definition, one output element after the other; 3D; differentiable by autograd."""
    kernel = tuple(weight.shape[2:])
    taps = list(itertools.product(*(range(size) for size in kernel)))
    axes = offset.shape[1] // (offset_groups * len(taps))
    size = offset.shape[2:]
    samples = []
    for b, *voxel in itertools.product(range(len(input)), *(range(extent) for extent in size)):
        for k, tap in enumerate(taps):
            values = []
            for group, channels in enumerate(input[b].chunk(offset_groups)):
                entry = group * len(taps) + k
                displacement = offset[(b, slice(entry * axes, (entry + 1) * axes), *voxel)]
                still = [displacement.new_zeros(())] * (3 - axes)
                position = [
                    v * s + t * d - p + o
                    for v, s, t, d, p, o in zip(
                        voxel, stride, tap, dilation, padding, [*still, *displacement], strict=True
                    )
                ]
                modulation = 1 if mask is None else mask[(b, entry, *voxel)]
                values += [interpolate(channel, position) * modulation for channel in channels]
            samples.append(torch.stack(values))
    columns = torch.stack(samples).view(len(input), math.prod(size), len(taps), -1)  # (B, L, taps, C)
    groups = columns.shape[-1] // weight.shape[1]
    output = torch.cat(
        [
            torch.einsum("blkc,ock->bol", part, kernel.flatten(2))
            for part, kernel in zip(columns.chunk(groups, dim=-1), weight.chunk(groups), strict=True)
        ],
        dim=1,
    )
    return output.reshape(len(input), len(weight), *size)


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, dtype=torch.float64, generator=generator) * scale).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Values and the gradients by every input agree."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    seed = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    for own, other in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "groups", "offset_groups", "kernel", "padding", "dilation", "modulated"),
    [
        (4, 6, 1, 1, (3, 3), (1, 1), (1, 1), False),
        (4, 6, 2, 1, (3, 3), (1, 1), (1, 1), True),
        (6, 4, 1, 3, (3, 5), (1, 2), (1, 1), False),
        (4, 4, 4, 2, (3, 3), (2, 3), (2, 3), True),
        (3, 5, 1, 1, (1, 1), (0, 0), (1, 1), True),
        (2, 2, 1, 1, (3, 3), (0, 0), (1, 1), False),
    ],
)
def test_2d_equals_torchvision_in_value_and_all_gradients(
    channels_in: int,
    channels_out: int,
    groups: int,
    offset_groups: int,
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    modulated: bool,
) -> None:
    height, width = 7, 9
    size = [s + 2 * p - d * (k - 1) for s, p, d, k in zip((height, width), padding, dilation, kernel, strict=True)]
    taps = math.prod(kernel)
    input = random(2, channels_in, height, width)
    offset = random(2, offset_groups * taps * 2, *size, scale=3)  # many samples lie outside
    weight = random(channels_out, channels_in // groups, *kernel)
    bias = random(channels_out)
    mask = random(2, offset_groups * taps, *size) if modulated else None
    ours = deform_conv(input, offset, weight, bias, 1, padding, dilation, mask, offset_groups=offset_groups)
    theirs = deform_conv2d(input, offset, weight, bias, 1, padding, dilation, mask)
    assert_same(ours, theirs, [input, offset, weight, bias, *([] if mask is None else [mask])])


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "axes", "modulated"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), 3, False),
        ((1, 3, 3), (0, 1, 1), (1, 1, 1), 2, True),
        ((3, 1, 3), (1, 0, 2), (1, 1, 2), 3, True),
        ((3, 3, 1), (1, 1, 0), (1, 1, 1), 2, False),  # in-plane offsets of taps in several planes
    ],
)
def test_3d_equals_the_definition_written_out(
    kernel: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], axes: int, modulated: bool
) -> None:
    size = (3, 2, 4)
    taps = math.prod(kernel)
    input, weight = random(2, 2, *size), random(3, 2, *kernel)
    offset = random(2, taps * axes, *size, scale=1.5)
    mask = random(2, taps, *size) if modulated else None
    ours = deform_conv(input, offset, weight, None, 1, padding, dilation, mask)
    slow = slow_deform_conv(input, offset, weight, padding, dilation, mask)
    assert_same(ours, slow, [input, offset, weight, *([] if mask is None else [mask])], tolerance=1e-10)


class TorchvisionsTestCase:
    """The arguments of torchvision's own test of deform_conv2d, and the same in 3D: no two of them are alike."""

    groups, offset_groups, channels_in, channels_out = 2, 3, 6, 2

    def __init__(self, dimensions: int, batch: int, contiguous: bool, dtype: torch.dtype = torch.float64) -> None:
        self.stride, self.padding, self.dilation = (2, 1, 1), (1, 0, 1), (2, 1, 2)
        kernel, size = (3, 2, 1), (5, 4, 3)
        if dimensions == 2:
            self.stride, self.padding, self.dilation = (one[:2] for one in (self.stride, self.padding, self.dilation))
            kernel, size = kernel[:2], size[:2]
        self.size = output_size(size, kernel, self.stride, self.padding, self.dilation)
        entries = self.offset_groups * math.prod(kernel)

        def tensor(*shape: int) -> Tensor:
            values = random(*shape).detach().to(dtype)
            if not contiguous:
                values = values.transpose(0, -1).contiguous().transpose(0, -1)
            return values.requires_grad_()

        self.input = tensor(batch, self.channels_in, *size)
        self.offset = tensor(batch, entries * dimensions, *self.size)
        self.mask = tensor(batch, entries, *self.size)
        self.weight = tensor(self.channels_out, self.channels_in // self.groups, *kernel)
        self.bias = tensor(self.channels_out)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.input, self.offset, self.weight, self.bias, self.mask]

    def ours(self) -> Tensor:
        arguments = (self.input, self.offset, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return deform_conv(*arguments, self.mask, offset_groups=self.offset_groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # of the reference and of the compiled loops
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_all_arguments_together_as_in_torchvision(batch: int, contiguous: bool, dtype: torch.dtype) -> None:
    case = TorchvisionsTestCase(2, batch, contiguous, dtype)
    theirs = deform_conv2d(*case.leaves[:4], case.stride, case.padding, case.dilation, case.mask)
    tolerance = 1e-9 if dtype == torch.float64 else 3e-5
    assert_same(case.ours(), theirs, case.leaves, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("contiguous", [True, False])
def test_all_arguments_together_in_3d(contiguous: bool, dtype: torch.dtype) -> None:
    case = TorchvisionsTestCase(3, 1, contiguous, dtype)
    slow = slow_deform_conv(
        *(case.input, case.offset, case.weight, case.padding, case.dilation, case.mask),
        stride=case.stride,
        offset_groups=case.offset_groups,
    )
    slow = slow + case.bias.view(-1, 1, 1, 1)
    assert_same(case.ours(), slow, case.leaves, 1e-9 if dtype == torch.float64 else 3e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("batch", "outputs"), [(0, 3), (2, 0)])
def test_without_samples_or_outputs_all_is_empty_or_zero(
    batch: int, outputs: int, dtype: torch.dtype, device: str
) -> None:
    input, weight = random(batch, 3, 4, 5, 6), random(outputs, 3, 3, 3, 3)
    offset, mask, bias = random(batch, 81, 4, 5, 6), random(batch, 27, 4, 5, 6), random(outputs)
    leaves = [one.detach().to(device, dtype).requires_grad_() for one in (input, offset, weight, bias, mask)]
    output = deform_conv(*leaves[:4], padding=1, mask=leaves[4])
    assert output.shape == (batch, outputs, 4, 5, 6)
    for leaf, gradient in zip(leaves, torch.autograd.grad(output.sum(), leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.dtype == dtype
        assert gradient.eq(0).all()


def test_stride_leaves_out_outputs() -> None:
    input, offset, weight = random(2, 4, 5, 6, 7), random(2, 81, 5, 6, 7), random(3, 4, 3, 3, 3)
    whole = deform_conv(input, offset, weight, padding=1)
    strided = deform_conv(input, offset[:, :, ::2, ::3], weight, stride=(2, 3, 1), padding=1)
    assert_same(strided, whole[:, :, ::2, ::3], [input, offset, weight])


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_give_the_plain_convolution(groups: int) -> None:
    input, weight, bias = random(2, 4, 4, 5, 6), random(6, 4 // groups, 3, 3, 3), random(6)
    plain = conv3d(input, weight, bias, padding=(1, 2, 1), dilation=(1, 2, 1), groups=groups)
    offset = torch.zeros(2, 81, *plain.shape[2:], dtype=torch.float64)
    ours = deform_conv(input, offset, weight, bias, padding=(1, 2, 1), dilation=(1, 2, 1))
    in_plane = torch.zeros(2, 54, *plain.shape[2:], dtype=torch.float64)
    assert deform_conv(input, in_plane, weight, bias, padding=(1, 2, 1), dilation=(1, 2, 1)).allclose(plain)
    assert_same(ours, plain, [input, weight, bias])


def test_whole_voxel_offsets_shift_the_samples() -> None:
    input = random(1, 1, 5, 6)
    offset = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    offset[:, 0] = 1  # y first
    offset[:, 1] = -2
    shifted = torch.zeros_like(input)
    shifted[:, :, :-1, 2:] = input[:, :, 1:, :-2]
    assert deform_conv(input, offset, torch.ones(1, 1, 1, 1, dtype=torch.float64)).equal(shifted)


@pytest.mark.parametrize("axes", [2, 3])
def test_gradcheck_in_3d(axes: int) -> None:
    kernel = (2, 1, 1) if axes == 3 else (1, 1, 2)
    taps = math.prod(kernel)
    size = (2, 2, 2)
    padding = (0, 0, 0)
    out = [s + 2 * p - (k - 1) for s, p, k in zip(size, padding, kernel, strict=True)]
    input, weight, bias = random(1, 4, *size), random(2, 2, *kernel), random(2)
    offset, mask = random(1, 2 * taps * axes, *out), random(1, 2 * taps, *out)

    def function(*tensors: Tensor) -> Tensor:
        input, offset, weight, bias, mask = tensors
        return deform_conv(input, offset, weight, bias, padding=padding, mask=mask, offset_groups=2)

    assert torch.autograd.gradcheck(function, (input, offset, weight, bias, mask))


@pytest.mark.parametrize("far", [1e4, 1e30, math.inf, -1e4, -1e30, -math.inf])
def test_samples_far_outside_are_zero_and_have_no_gradient(far: float) -> None:
    input, weight = random(1, 2, 3, 3, 3), random(2, 2, 3, 3, 3)
    offset = torch.full((1, 81, 3, 3, 3), far, dtype=torch.float64, requires_grad=True)
    output = deform_conv(input, offset, weight, padding=1)
    assert output.eq(0).all()
    for gradient in torch.autograd.grad(output.sum(), (input, offset, weight)):
        assert gradient.eq(0).all()


def test_a_nan_offset_shows_in_its_voxel_and_in_every_gradient() -> None:
    input, weight, mask = random(1, 1, 3, 4), random(1, 1, 1, 1), random(1, 1, 3, 4)
    offset = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    offset[0, 0, 1, 2] = math.nan
    offset.requires_grad_()
    output = deform_conv(input, offset, weight, mask=mask)
    voxel = torch.zeros(3, 4, dtype=torch.bool)
    voxel[1, 2] = True
    assert output[0, 0].isnan().equal(voxel)
    by_input, by_offset, by_mask, by_weight = torch.autograd.grad(output.sum(), (input, offset, mask, weight))
    assert by_offset[0].isnan().any(0).equal(voxel)
    assert by_mask[0, 0].isnan().equal(voxel)
    assert by_weight.isnan().all()
    assert by_input.isnan().any()


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 1), (2, 1, 5)])
def test_maps_of_one_voxel_along_an_axis(size: tuple[int, ...]) -> None:
    input, weight = random(2, 3, *size), random(3, 3, 3, 3, 3)
    offset = random(2, 81, *size)
    ours = deform_conv(input, offset, weight, padding=1)
    assert_same(ours, slow_deform_conv(input, offset, weight, (1, 1, 1), (1, 1, 1)), [input, offset, weight])


def test_tiles_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, offset = random(2, 3, 5, 6, 7), random(3, 3, 3, 3, 3), random(2, 81, 5, 6, 7)

    def run() -> list[Tensor]:
        output = deform_conv(input, offset, weight, padding=1)
        return [output, *torch.autograd.grad(output.square().sum(), (input, offset, weight))]

    in_large_tiles = run()
    monkeypatch.setattr("nnunet_godc.ops._reference.WORKSPACE", 1e-4)
    monkeypatch.setattr("nnunet_godc.ops._reference.SMALLEST_WORKSPACE", 0)  # one or two voxels at a time
    for large, small in zip(in_large_tiles, run(), strict=True):
        torch.testing.assert_close(large, small, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_summed_in_float32(dtype: torch.dtype) -> None:
    input, weight, offset = (
        tensor.detach().to(dtype) for tensor in (random(1, 8, 6, 6), random(4, 8, 3, 3), random(1, 18, 6, 6))
    )
    expected = deform_conv(input.double(), offset.double(), weight.double(), padding=1)
    output = deform_conv(input, offset, weight, padding=1)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_half_precision_gradients_have_the_dtypes_of_their_tensors() -> None:
    input, weight = (
        random(1, 2, 4, 4).detach().half().requires_grad_(),
        random(2, 2, 3, 3).detach().half().requires_grad_(),
    )
    offset = random(1, 18, 4, 4).detach().float().requires_grad_()
    deform_conv(input, offset, weight, padding=1).float().sum().backward()
    assert [tensor.grad.dtype for tensor in (input, offset, weight)] == [torch.float16, torch.float32, torch.float16]


def test_autocast_casts_all_but_the_offsets() -> None:
    input, weight, bias = random(1, 2, 4, 4).detach().float(), random(2, 2, 3, 3).detach().float(), torch.zeros(2)
    offset = torch.full((1, 18, 4, 4), 1 / 1024 + 1)  # bfloat16 would round it to 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = deform_conv(input, offset, weight, bias, padding=1)
    assert output.dtype == torch.bfloat16
    rounded = [tensor.bfloat16().double() for tensor in (input, weight)]
    expected = deform_conv(rounded[0], offset.double(), rounded[1], padding=1)
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=1e-6)
    assert not output.double().sub(deform_conv(rounded[0], offset.round().double(), rounded[1], padding=1)).eq(0).all()


def test_float64_stays_float64_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert deform_conv(random(1, 1, 3, 3), random(1, 2, 3, 3), random(1, 1, 1, 1)).dtype == torch.float64


@pytest.mark.parametrize("modulated", [False, True])
def test_opcheck_finds_nothing(modulated: bool) -> None:
    input, weight, bias = random(1, 2, 3, 3, 2), random(2, 2, 1, 3, 3), random(2)
    offset, mask = random(1, 18, 3, 3, 2), random(1, 9, 3, 3, 2) if modulated else None
    arguments = (input, offset, weight, bias, mask, [1, 1, 1], [0, 1, 1], [1, 1, 1], 1)
    torch.library.opcheck(torch.ops.nnunet_godc.deform_conv.default, arguments)
    tensors = [None if tensor is None else tensor.detach() for tensor in (input, input, offset, weight, mask)]
    torch.library.opcheck(torch.ops.nnunet_godc.deform_conv_backward.default, (*tensors, *arguments[5:]))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph_with_the_same_result(backend: str) -> None:
    torch._dynamo.reset()
    inputs = [random(2, 3, 4, 4, 4), random(2, 81, 4, 4, 4), random(3, 3, 3, 3, 3)]
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]

    def function(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deform_conv(input * 2, offset, weight, padding=1).relu()

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    assert_same(compiled(*inputs), function(*inputs), inputs, tolerance=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(*inputs).dtype == torch.bfloat16


def in_single_precision(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in tensors]


def test_activation_checkpointing_changes_no_gradient() -> None:
    inputs = in_single_precision(random(2, 3, 4, 4, 4), random(2, 81, 4, 4, 4), random(3, 3, 3, 3, 3))

    def function(*tensors: Tensor) -> Tensor:
        return deform_conv(*tensors, padding=1).square()

    plain = torch.autograd.grad(function(*inputs).sum(), inputs)
    kept = torch.autograd.grad(checkpoint(function, *inputs, use_reentrant=False).sum(), inputs)
    assert all(one.equal(other) for one, other in zip(plain, kept, strict=True))


def test_deterministic_algorithms_give_identical_gradients() -> None:
    inputs = in_single_precision(random(2, 32, 6, 6, 6), random(2, 81, 6, 6, 6), random(8, 32, 3, 3, 3))
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(deform_conv(*inputs, padding=1).square().sum(), inputs) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(one.equal(other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


class DeformableLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset = torch.nn.Conv2d(2, 18, 3, padding=1)
        self.weight = torch.nn.Parameter(torch.randn(2, 2, 3, 3))

    def forward(self, input: Tensor) -> Tensor:
        return deform_conv(input, self.offset(input), self.weight, padding=1)


def test_a_scaled_step_under_autocast_moves_the_parameters() -> None:
    layer, scaler = DeformableLayer(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = layer(torch.randn(1, 2, 5, 5)).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not parameter.equal(old)


def test_distributed_training_has_the_gradients_of_one_process(tmp_path: Path) -> None:
    layer, input = DeformableLayer(), torch.randn(2, 2, 5, 5)
    expected = torch.autograd.grad(layer(input).square().sum(), list(layer.parameters()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(layer)(input).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_non_contiguous_tensors_are_read_right() -> None:
    input = random(2, 4, 4, 5, 3).permute(0, 4, 1, 2, 3)
    offset = random(2, 4, 4, 5, 81).permute(0, 4, 1, 2, 3)
    weight = random(3, 3, 3, 3, 3).transpose(0, 1)
    ours = deform_conv(input, offset, weight, padding=1)
    plain = deform_conv(*(tensor.contiguous() for tensor in (input, offset, weight)), padding=1)
    assert_same(ours, plain, [input, offset, weight])
    last = torch.channels_last_3d
    assert deform_conv(input.contiguous(memory_format=last), offset, weight, padding=1).equal(ours)


PEAK_MEMORY = """
import resource, sys, torch
from nnunet_godc.ops import deform_conv
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.set_num_threads(1)
def run(size):
    tensors = torch.randn(2, 16, size, size, size), torch.randn(2, 81, size, size, size), torch.randn(16, 16, 3, 3, 3)
    for tensor in tensors:
        tensor.requires_grad_()
    before = peak()
    output = deform_conv(*tensors, padding=1)
    forward = peak() - before
    output.sum().backward()
    return forward, peak() - before, sum(t.nbytes for t in (tensors[0], tensors[1], output))
run(8)
forward, backward, base = run(48)
print(forward / base, backward / base)
"""


def test_memory_stays_within_three_times_input_offset_and_output() -> None:
    result = subprocess.run([sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True)
    forward, backward = (float(number) for number in result.stdout.split())
    assert forward < 3
    # with the gradients of input and offset, which are most of the three themselves, on top
    assert backward < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 4)}, r"input has shape \(2, 4\)"),
        ({"input": torch.zeros(1, 4, 5, 5, dtype=torch.long)}, "input has dtype torch.int64"),
        ({"weight": torch.zeros(4, 3, 3, 3)}, "does not fit 4 input channels"),
        ({"weight": torch.zeros(3, 2, 3, 3)}, "does not fit 4 input channels"),
        ({"weight": torch.zeros(4, 4, 3)}, "needs 4 axes"),
        ({"weight": torch.zeros(4, 4, 9, 3)}, "smaller than the kernel"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\); expected \(4,\)"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 2}, r"expected \(1, 18, 3, 3\)"),
        ({"padding": -1}, "padding is -1"),
        ({"dilation": (1, 0)}, r"dilation is \(1, 0\)"),
        ({"offset_groups": 3}, "offset_groups is 3"),
        ({"offset": torch.zeros(1, 17, 5, 5)}, r"offset has shape \(1, 17, 5, 5\); expected \(1, 18, 5, 5\)"),
        ({"mask": torch.zeros(1, 18, 5, 5)}, r"mask has shape \(1, 18, 5, 5\); expected \(1, 9, 5, 5\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    arguments = {
        "input": torch.zeros(1, 4, 5, 5),
        "offset": torch.zeros(1, 18, 5, 5),
        "weight": torch.zeros(4, 4, 3, 3),
        "padding": 1,
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        deform_conv(**arguments)


def test_the_reference_is_always_available() -> None:
    assert available_backends()["reference"] is None


def test_2d_zero_offsets_equal_conv2d_in_float32() -> None:
    input, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    ours = deform_conv(input, torch.zeros(2, 18, 8, 8), weight, padding=1)
    torch.testing.assert_close(ours, conv2d(input, weight, padding=1), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("dtype", "backend"), [(torch.float32, "triton"), (torch.float64, "reference")])
def test_cuda_equals_cpu(dtype: torch.dtype, backend: str) -> None:
    inputs = [random(2, 3, 4, 5, 6), random(2, 81, 4, 5, 6), random(3, 3, 3, 3, 3)]
    on_gpu = [tensor.detach().cuda().to(dtype).requires_grad_() for tensor in inputs]
    assert backends.select(Arguments(*on_gpu, None, [1] * 3, [1] * 3, 1)).name == backend
    ours, theirs = deform_conv(*on_gpu, padding=1), deform_conv(*inputs, padding=1)
    ours.sum().backward()
    theirs.sum().backward()
    pairs = [(ours, theirs), *((gpu.grad, cpu.grad) for gpu, cpu in zip(on_gpu, inputs, strict=True))]
    for gpu, cpu in pairs:
        atol = (3e-6 if dtype == torch.float32 else 1e-12) * cpu.abs().max().item()
        torch.testing.assert_close(gpu.cpu().double(), cpu, rtol=0, atol=atol)
