"""deform_conv against tvdcn, torchvision slice by slice, one grid_sample per tap, and a plain convolution as the floor.

Each of them forward alone, as in prediction, and forward with backward, as in training; on a GPU in float16 and
bfloat16 under autocast, as networks are trained, and in float32 with and without TF32. Needs no more than PyTorch.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import _checkout  # noqa: F401  before all that imports the package
import torch
from _measure import Comparison, Step, forward_backward, parse_arguments
from torch import Tensor
from torch.nn import functional as F

from nnunet_godc.ops import _cuda, deform_conv

try:
    from torchvision.ops import deform_conv2d
except ImportError:
    deform_conv2d = None
try:
    from tvdcn.ops import deform_conv3d  # 1.1 needs torch 2.7
except ImportError:
    deform_conv3d = None


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        shape: of the input.
        displaced: offsets move the last so many axes.
        dtype: of all tensors; in 16-bit ones under autocast, which lets each candidate compute as it can.
        tf32: whether products of float32 may be rounded so, in all candidates.
    """

    shape: tuple[int, ...]
    displaced: int
    dtype: torch.dtype = torch.float32
    tf32: bool = False

    def __str__(self) -> str:
        axes = len(self.shape) - 2
        offsets = "in-plane" if self.displaced < axes else f"{axes}D"
        numbers = "TF32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{' x '.join(map(str, self.shape))}, {offsets} offsets, {numbers}"


CPU_CASES = [
    Case((2, 32, 32, 32, 32), 3),
    Case((2, 32, 32, 32, 32), 2),
    Case((2, 64, 24, 24, 24), 3),
    Case((2, 32, 128, 128), 2),
]
# In the order of interest.
GPU_CASES = [
    Case((2, 64, 64, 64, 64), 3, torch.float16),
    Case((2, 32, 128, 128, 128), 3, torch.float16),
    Case((2, 64, 64, 64, 64), 3, torch.bfloat16),
    Case((2, 64, 64, 64, 64), 3),
    Case((2, 64, 64, 64, 64), 3, tf32=True),
    Case((2, 64, 64, 64, 64), 2, torch.float16),
    Case((2, 32, 448, 448), 2, torch.float16),
]
TINY_CASES = [
    Case((2, 4, 5, 6, 7), 3, torch.float16),
    Case((2, 4, 5, 6, 7), 2, torch.bfloat16),
    Case((2, 4, 6, 7), 2, tf32=True),
]
KERNEL = 3
PADDING = KERNEL // 2
# Of the candidates' differences: a few roundings of values of about one.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3}

Candidate = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, offset, weight -> output


def ours(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return deform_conv(input, offset, weight, padding=PADDING)


def convolution(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The floor: the same number of multiplications, at regular positions."""
    return (F.conv2d if input.dim() == 4 else F.conv3d)(input, weight, padding=PADDING)


def grid_sample_per_tap(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The usual way to write it in 3D: every tap's samples by grid_sample, then a 1 x 1 convolution each.

    Positions are float32 whatever the dtype, as they have to be, and then autocast runs grid_sample in float32.
    """
    size = input.shape[2:]
    axes = len(size)
    offsets = offset.unflatten(1, (-1, axes))  # (B, taps, axes, ...)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n, device=input.device) for n in size), indexing="ij"))
    scale = torch.tensor([2 / (n - 1) for n in size], device=input.device).view(axes, *[1] * axes)
    output = input.new_zeros(())
    for tap, position in enumerate(itertools.product(range(KERNEL), repeat=axes)):
        shift = torch.tensor(position, device=input.device).view(axes, *[1] * axes) - PADDING
        grid = (voxels + shift + offsets[:, tap].float()) * scale - 1  # (B, axes, ...)
        # grid_sample has the axes in reverse, x first
        sampled = F.grid_sample(input, grid.flip(1).movedim(1, -1), align_corners=True)
        output = output + torch.einsum("bi...,oi->bo...", sampled.to(input.dtype), weight.flatten(2)[..., tap])
    return output


def with_cuda_gradient(step: Step) -> Step:
    """A step in which `ours` takes the gradient in CUDA C++."""

    def switched() -> object:
        os.environ[_cuda.SWITCH] = "1"
        try:
            if reason := _cuda.why_unusable():
                raise RuntimeError(reason)
            return step()
        finally:
            del os.environ[_cuda.SWITCH]

    return switched


def torchvision_slice_by_slice(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """In-plane offsets: each tap plane of the kernel is a 2D deformable convolution of slices moved along z."""
    input, offset, weight = _in_float32(input, offset, weight)
    batch, _, depth = input.shape[:3]
    plane_offsets = offset.unflatten(1, (KERNEL, -1))  # (B, kernel planes, taps of a plane * 2, D, H, W)
    padded = F.pad(input, (0, 0, 0, 0, PADDING, PADDING))
    output = input.new_zeros(())
    for plane in range(KERNEL):
        slices = padded[:, :, plane : plane + depth].transpose(1, 2).flatten(0, 1)  # (B * D, C, H, W)
        displacements = plane_offsets[:, plane].transpose(1, 2).flatten(0, 1)
        output = output + deform_conv2d(slices, displacements, weight[:, :, plane], padding=PADDING)
    return output.view(batch, depth, *output.shape[1:]).transpose(1, 2)


def torchvision_2d(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = deform_conv2d(*_in_float32(input, offset, weight), padding=PADDING)
    return result


def tvdcn_3d(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    # its backward fails without a mask and a bias, and its defaults for stride and dilation are refused by itself
    input, offset, weight = _in_float32(input, offset, weight)
    mask = input.new_ones(offset.shape[0], offset.shape[1] // 3, *offset.shape[2:])
    ones, paddings = (1, 1, 1), (PADDING, PADDING, PADDING)
    result: Tensor = deform_conv3d(input, weight, offset, mask, input.new_zeros(len(weight)), ones, paddings, ones)
    return result


def _in_float32(*tensors: Tensor) -> list[Tensor]:
    """As torchvision does under autocast on a GPU, since its 16-bit positions would be wrong by parts of a voxel."""
    return [tensor.float() for tensor in tensors]


def candidates(dimensions: int, displaced: int) -> dict[str, Candidate]:
    """All that compute the same thing, and the plain convolution."""
    chosen: dict[str, Candidate] = {"nnunet_godc deform_conv": ours}
    if deform_conv2d is not None and displaced == 2:
        if dimensions == 2:
            chosen["torchvision deform_conv2d"] = torchvision_2d
        else:
            chosen["torchvision deform_conv2d, slice by slice"] = torchvision_slice_by_slice
    if deform_conv3d is not None and displaced == 3:
        chosen["tvdcn deform_conv3d"] = tvdcn_3d
    if displaced == dimensions:
        chosen[f"{KERNEL**dimensions} x grid_sample"] = grid_sample_per_tap
    chosen[f"conv{dimensions}d, no offsets"] = convolution
    return chosen


def measure(case: Case, comparison: Comparison, seconds: float) -> None:
    torch.manual_seed(0)
    device, shape = comparison.device, case.shape
    # grid_sample and the convolutions would otherwise round to TF32 where deform_conv does not
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = case.tf32
    dimensions = len(shape) - 2
    taps = KERNEL**dimensions
    spread = 1 / math.sqrt(shape[1] * taps)
    input = torch.randn(shape, device=device)
    offset = torch.randn((shape[0], taps * case.displaced, *shape[2:]), device=device)
    weight = torch.randn((shape[1], shape[1], *[KERNEL] * dimensions), device=device) * spread
    input, offset, weight = leaves = [tensor.to(case.dtype).requires_grad_() for tensor in (input, offset, weight)]
    training: dict[str, Step] = {}
    prediction: dict[str, Step] = {}
    expected: Tensor | None = None
    for name, candidate in candidates(dimensions, case.displaced).items():
        call = partial(_as_in_training, candidate, case.dtype, input, offset, weight)
        try:
            output = call().detach().float()
            if candidate is ours:
                expected = output
            elif candidate is not convolution and expected is not None:
                # a rival that computes something else would make the comparison worthless
                tolerance = TOLERANCE[torch.float16 if case.tf32 else case.dtype]
                torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
        except Exception as error:  # of a compiler, a rival, the GPU's memory, or the comparison
            comparison.fail(f"{case}, {name}", error)
            continue
        training[name] = forward_backward(call, [input, weight] if candidate is convolution else leaves)
        prediction[name] = torch.no_grad()(call)
        if candidate is ours and comparison.device.type == "cuda" and case.dtype in _cuda.DTYPES:
            in_cuda = f"{name}, gradient in CUDA C++"
            try:
                _check_gradients(call, leaves)
            except Exception as error:  # of the compiler, or the comparison
                comparison.fail(f"{case}, {in_cuda}", error)
            else:
                training[in_cuda] = with_cuda_gradient(training[name])
    comparison.measure(f"{case}, forward", prediction, seconds)
    comparison.measure(f"{case}, forward and backward", training, seconds)


def _as_in_training(candidate: Candidate, dtype: torch.dtype, input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Under autocast, if the dtype is a 16-bit one; torchvision then computes in float32."""
    with torch.autocast(input.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return candidate(input, offset, weight)


def _check_gradients(call: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    """The gradient in CUDA C++ has to be Triton's, but for what is rounded."""

    def gradients() -> tuple[Tensor, ...]:
        output = call()
        torch.manual_seed(1)
        return torch.autograd.grad(output, leaves, torch.randn_like(output))

    expected = gradients()
    ours = with_cuda_gradient(gradients)()
    for value, reference in zip(ours, expected, strict=True):  # type: ignore[call-overload]
        difference = (value.float() - reference.float()).norm() / reference.float().norm()
        if not difference < TOLERANCE[value.dtype]:
            raise ValueError(f"a gradient differs from Triton's by {difference.item():.2g} of its norm")


def main() -> int:
    arguments = parse_arguments(__doc__)
    notes = ["offsets of one voxel, standard deviation"]
    for package, function in {"torchvision": deform_conv2d, "tvdcn": deform_conv3d}.items():
        if function is None:
            notes.append(f"{package} is not installed: its deformable convolution is left out")
            print(notes[-1])
    comparison = Comparison("deform_conv", arguments, notes)
    on_gpu = comparison.device.type == "cuda"
    for case in TINY_CASES if arguments.tiny else GPU_CASES if on_gpu else CPU_CASES:
        measure(case, comparison, arguments.seconds)
    return comparison.finish()


if __name__ == "__main__":
    sys.exit(main())
