"""deform_conv against tvdcn, torchvision slice by slice, one grid_sample per tap, and a plain convolution as the floor.

Each of them forward alone, as in prediction, and forward with backward, as in training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from _measure import Measurement, compare, forward_backward, parse_arguments, write_results
from torch import Tensor
from torch.nn import functional as F

from nnunet_godc.ops import deform_conv

try:
    from torchvision.ops import deform_conv2d
except ImportError:
    deform_conv2d = None
try:
    from tvdcn.ops import deform_conv3d  # 1.1 needs torch 2.7
except ImportError:
    deform_conv3d = None

# Shape of the input, and how many axes the offsets move.
CASES = {
    "cpu": [((2, 32, 32, 32, 32), 3), ((2, 32, 32, 32, 32), 2), ((2, 64, 24, 24, 24), 3), ((2, 32, 128, 128), 2)],
    "cuda": [((2, 64, 64, 64, 64), 3), ((2, 64, 64, 64, 64), 2), ((2, 32, 448, 448), 2)],
}
KERNEL = 3
PADDING = KERNEL // 2

Candidate = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, offset, weight -> output


def ours(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return deform_conv(input, offset, weight, padding=PADDING)


def convolution(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The floor: the same number of multiplications, at regular positions."""
    return (F.conv2d if input.dim() == 4 else F.conv3d)(input, weight, padding=PADDING)


def grid_sample_per_tap(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The usual way to write it in 3D: every tap's samples by grid_sample, then a 1 x 1 convolution each."""
    size = input.shape[2:]
    axes = len(size)
    offsets = offset.unflatten(1, (-1, axes))  # (B, taps, axes, ...)
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n, device=input.device) for n in size), indexing="ij"))
    scale = torch.tensor([2 / (n - 1) for n in size], device=input.device).view(axes, *[1] * axes)
    output = input.new_zeros(())
    for tap, position in enumerate(itertools.product(range(KERNEL), repeat=axes)):
        shift = torch.tensor(position, device=input.device).view(axes, *[1] * axes) - PADDING
        grid = (voxels + shift + offsets[:, tap]) * scale - 1  # (B, axes, ...)
        # grid_sample has the axes in reverse, x first
        sampled = F.grid_sample(input, grid.flip(1).movedim(1, -1), align_corners=True)
        output = output + torch.einsum("bi...,oi->bo...", sampled, weight.flatten(2)[..., tap])
    return output


def torchvision_slice_by_slice(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """In-plane offsets: each tap plane of the kernel is a 2D deformable convolution of slices moved along z."""
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
    result: Tensor = deform_conv2d(input, offset, weight, padding=PADDING)
    return result


def tvdcn_3d(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    # its backward fails without a mask and a bias, and its defaults for stride and dilation are refused by itself
    mask = input.new_ones(offset.shape[0], offset.shape[1] // 3, *offset.shape[2:])
    ones, paddings = (1, 1, 1), (PADDING, PADDING, PADDING)
    result: Tensor = deform_conv3d(input, weight, offset, mask, input.new_zeros(len(weight)), ones, paddings, ones)
    return result


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


def measure(shape: tuple[int, ...], displaced: int, device: torch.device, seconds: float) -> list[Measurement]:
    """One input with offsets along its last `displaced` axes."""
    torch.manual_seed(0)
    dimensions = len(shape) - 2
    taps = KERNEL**dimensions
    input = torch.randn(shape, device=device, requires_grad=True)
    offset = torch.randn((shape[0], taps * displaced, *shape[2:]), device=device, requires_grad=True)
    spread = 1 / math.sqrt(shape[1] * taps)
    weight = (torch.randn((shape[1], shape[1], *[KERNEL] * dimensions), device=device) * spread).requires_grad_()
    training, prediction = {}, {}
    expected = ours(input, offset, weight).detach()
    for name, candidate in candidates(dimensions, displaced).items():
        leaves = [input, weight]
        if candidate is not convolution:
            leaves.append(offset)
            # a rival that computes something else would make the comparison worthless
            torch.testing.assert_close(candidate(input, offset, weight).detach(), expected, rtol=1e-3, atol=1e-3)
        call = partial(candidate, input, offset, weight)
        training[name] = forward_backward(call, leaves)
        prediction[name] = torch.no_grad()(call)
    case = f"{' x '.join(map(str, shape))}, {'in-plane' if displaced < dimensions else f'{dimensions}D'} offsets"
    return [
        *compare(f"{case}, forward", prediction, device, seconds),
        *compare(f"{case}, forward and backward", training, device, seconds),
    ]


def main() -> None:
    arguments = parse_arguments(__doc__)
    device = torch.device(arguments.device)
    # grid_sample and the convolutions would otherwise round to TF32 where deform_conv does not
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    notes = ["offsets of one voxel, standard deviation"]
    for package, function in {"torchvision": deform_conv2d, "tvdcn": deform_conv3d}.items():
        if function is None:
            notes.append(f"{package} is not installed: its deformable convolution is left out")
            print(notes[-1])
    measurements = []
    for shape, displaced in CASES[device.type]:
        measurements += measure(shape, displaced, device, arguments.seconds)
    write_results("deform_conv", measurements, arguments, notes)


if __name__ == "__main__":
    main()
